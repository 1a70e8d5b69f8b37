"""A network namespace at the other end of a bad link: latency, loss and a narrow band, under the kernel's own TCP.

Two TUN devices, one here and one in the namespace; whatever comes out of one is held up, lost or let into the other.
tc's netem would do the same where a kernel has it; this needs root and /dev/net/tun only.
"""

import asyncio
import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LARGEST = 1 << 16
QUEUE_SECONDS = 0.3
"""What a router holds at most: packets that would wait longer are dropped, as those of a full queue are."""


def why_not() -> str | None:
    """Why there can be no such link here; None if there can."""
    if shutil.which("ip") is None:
        return "needs the command ip (Debian: apt-get install iproute2)"
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs root and /dev/net/tun"
    name = f"tt{os.getpid()}p"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"network namespaces cannot be made: {done.stderr.strip()}"
    ip("netns", "del", name)
    return None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class BadLink:
    """`here` is this end's address; a command that begins with `inside` runs at the other end.

    Attributes:
        delay: Seconds that each packet takes one way.
        loss: Share of the packets that are lost, drawn with a seed.
        band: Bytes a second, each way.
        sent, lost: Packets so far.
    """

    here: str
    inside: list[str]
    delay: float
    loss: float
    band: float
    sent: int = 0
    lost: int = 0
    _free: dict[int, float] = field(default_factory=dict)

    def pass_on(self, loop: asyncio.AbstractEventLoop, rng: Random, source: int, target: int) -> None:
        """One packet: lost, or written to the other device when its time has come."""
        packet = os.read(source, LARGEST)
        now = loop.time()
        free = max(now, self._free.get(source, 0.0))
        self.sent += 1
        if rng.random() < self.loss or free - now > QUEUE_SECONDS:
            self.lost += 1
            return
        self._free[source] = free + len(packet) / self.band
        loop.call_at(self._free[source] + self.delay, os.write, target, packet)


@contextmanager
def bad_link(*, delay: float = 0.0, loss: float = 0.0, band: float = 1e9, seed: int = 0) -> Iterator[BadLink]:
    """A link with one end here and one in a namespace of its own; gone at the end, whatever happens."""
    pid = os.getpid()
    space, near, far, net = f"tt{pid}", f"tn{pid}", f"tf{pid}", f"10.{64 + pid % 60}.{pid // 60 % 250}"
    with ExitStack() as stack:
        ip("netns", "add", space)
        stack.callback(ip, "netns", "del", space)
        ends = [_device(name) for name in (near, far)]
        for end in ends:
            stack.callback(os.close, end)
        ip("link", "set", far, "netns", space)
        ip("addr", "add", f"{net}.1", "peer", f"{net}.2", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", space, "addr", "add", f"{net}.2", "peer", f"{net}.1", "dev", far)
        ip("-n", space, "link", "set", far, "up")
        ip("-n", space, "link", "set", "lo", "up")
        link = BadLink(f"{net}.1", ["ip", "netns", "exec", space], delay, loss, band)
        stack.enter_context(_running(link, ends[0], ends[1], Random(seed)))
        yield link


def _device(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


@contextmanager
def _running(link: BadLink, near: int, far: int, rng: Random) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    for source, target in ((near, far), (far, near)):
        loop.add_reader(source, link.pass_on, loop, rng, source, target)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
