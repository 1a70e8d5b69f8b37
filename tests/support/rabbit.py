"""A RabbitMQ of one test's own, which may be stopped and started again."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.ports import free_port
from support.services import missing

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Rabbit:
    """`url` stays the same, and what was confirmed is there again, however often the broker is stopped."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.settings = settings
        self._folder, self._port, self._distribution, self.tls_port = folder, free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it takes connections."""
        environment = {
            "HOME": str(self._folder),
            "PATH": os.environ["PATH"],
            "RABBITMQ_NODENAME": f"tutti-{self._port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1",
            "LANG": "C.UTF-8",
        }
        (self._folder / "plugins").write_text("[].")
        (self._folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self._port}\n{self.settings}")
        with (self._folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [SERVER], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5) as peer:
                peer.sendall(b"AMQP\0\0\x09\x01")
                if peer.recv(1) == b"\x01":  # a method; a port that was free may also connect to itself
                    return
            time.sleep(0.1)
        raise TimeoutError(f"RabbitMQ did not start; see {self._folder / 'logs'}")

    def stop(self) -> None:
        """As an operator would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(60)
        self._process = None

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def rabbit(folder: Path) -> Iterator[Rabbit]:
    if not SERVER.exists() or shutil.which("erl") is None:
        missing("RabbitMQ", f"{SERVER} is not installed")
    server = Rabbit(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
