"""What goes wrong with a ring's commands is said in one line, with the exit code that docs/cli.md gives for it."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest

from support.commands import DEADLINE, ENVIRONMENT, background, running, tutti
from support.ports import free_port, free_ports
from tutti.adapters.thrift.client import Channel, UnknownCall
from tutti.adapters.thrift.idl import PROTOCOL, compute_node, peer_struct, supernode, training_node
from tutti.adapters.thrift.node import peer_at
from tutti.apps.cli.exits import Exit
from tutti.apps.ringclient import RingClient
from tutti.ring.consensus import Fetch
from tutti.ring.identifiers import Peer
from tutti.services.views.ring import ring_lights
from tutti.wire.thrift import MAX_FRAME


@pytest.fixture
def taken():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def refused(code: Exit, said: str, *arguments: object, cwd: Path) -> None:
    done = tutti("ring", *arguments, cwd=cwd)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


ANOTHER_VERSION = """
from tutti.adapters.thrift import idl
idl.PROTOCOL {0}= 1
from tutti.apps.cli import main
main()
"""
"""The command line of a Tutti whose ring speaks the next version of the protocol, or the one before."""


def refused_to_another_version(which: str, said: str, *arguments: object, cwd: Path) -> None:
    command = [sys.executable, "-c", ANOTHER_VERSION.format(which), "ring", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, "Traceback" in done.stderr) == (Exit.CONFLICT, False), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("which", ["+", "-"])
def test_another_version_is_refused_wherever_it_asks(tmp_path, which):
    """To join, by a supernode and by members of before; and as a client, of a supernode and of a member."""
    seed, member, newcomer = free_ports(3)
    other = PROTOCOL + (1 if which == "+" else -1)
    said = f"speaks protocol {PROTOCOL}, the caller {other}: use one version"
    state = tmp_path / "newcomer"
    join = ("node", newcomer, "127.0.0.1", seed, "--state-dir", state)
    with running("ring", "supernode", "--port", seed, cwd=tmp_path) as first:
        own = ("--state-dir", tmp_path / "member")
        with running("ring", "node", member, "127.0.0.1", seed, *own, cwd=tmp_path):
            refused_to_another_version(which, said, *join, cwd=tmp_path)
            for port in (seed, member):
                refused_to_another_version(which, said, "show", "127.0.0.1", port, cwd=tmp_path)
            train = ("train", "127.0.0.1", member, "--dataset", "d", "--model", "mlp")
            refused_to_another_version(which, said, *train, cwd=tmp_path)
            refused_to_another_version(which, said, "result", "job", "127.0.0.1", member, cwd=tmp_path)
            first.end(SIGKILL)
            (state / "ring.json").write_text(json.dumps({"incarnation": 1, "peers": [f"127.0.0.1:{member}"]}))
            refused_to_another_version(which, said, *join, cwd=tmp_path)
            shown = tutti("ring", "show", "127.0.0.1", member, "--json", cwd=tmp_path)  # nothing has happened to it
            assert [view["roster"] for view in json.loads(shown.stdout)] == [[f"127.0.0.1:{member}"]]


def test_what_a_supernode_cannot_do(tmp_path, taken):
    refused(Exit.CONFLICT, "choose another port", "supernode", "--port", taken, cwd=tmp_path)
    members = tmp_path / "compute_node.txt"
    members.write_text("127.0.0.1,5001\n127.0.0.1\n")
    refused(Exit.USAGE, "members file, line 2: expected an address", "supernode", "--members", members, cwd=tmp_path)
    refused(Exit.USAGE, "is on a network, where anybody could join", "supernode", "--host", "0.0.0.0", cwd=tmp_path)


def test_who_may_be_a_member(tmp_path, taken):
    members = tmp_path / "compute_node.txt"
    members.write_text(f"127.0.0.1,{taken}\n")
    port, stranger = free_ports(2)
    with running("ring", "supernode", "--port", port, "--members", members, cwd=tmp_path):
        state = ("--state-dir", tmp_path / "state")
        refused(Exit.CONFLICT, "is not among the 1 of the members file", "node", stranger, "127.0.0.1", port,
                *state, cwd=tmp_path)  # fmt: skip
        refused(Exit.CONFLICT, "choose another port", "node", taken, "127.0.0.1", port, *state, cwd=tmp_path)
        refused(Exit.USAGE, "has no members yet", "show", "127.0.0.1", port, cwd=tmp_path)


def test_a_member_with_a_members_file_takes_nobody_else(tmp_path):
    """Also where the supernode has none; who is refused says so."""
    seed, member, stranger = free_ports(3)
    members = tmp_path / "compute_node.txt"
    members.write_text(f"127.0.0.1:{member}\n")
    with (
        running("ring", "supernode", "--port", seed, cwd=tmp_path),
        running("ring", "node", member, "127.0.0.1", seed, "--members", members, "--state-dir", "a", cwd=tmp_path),
        background("ring", "node", stranger, "127.0.0.1", seed, "--state-dir", "b", cwd=tmp_path) as other,
    ):
        said = f"127.0.0.1:{stranger} is not among the 1 of the members file: add it there"
        assert other.stderr is not None
        assert any(f"127.0.0.1:{member} refuses this member: {said}" in line for line in other.stderr)
        shown = tutti("ring", "show", "127.0.0.1", member, "--json", cwd=tmp_path)
        assert json.loads(shown.stdout)[0]["roster"] == [f"127.0.0.1:{member}"]


async def noise(port: int) -> None:
    """What a stranger may send to a member: each is answered or cut off, with the reason."""
    for said in (b"GET / HTTP/1.1\r\n\r\n", (MAX_FRAME + 1).to_bytes(4) + b"x", b"\x00\x00\x00\x04\xff\xff\xff\xff"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        async with asyncio.timeout(DEADLINE):
            assert await reader.read() == b""
        writer.close()
    stranger, forged = peer_struct(peer_at("10.0.0.9:1")), peer_struct(Peer(5, "10.0.0.9:1"))
    said = msgspec.msgpack.encode(Fetch(sender="10.0.0.8:1", generation=0, height=0, tip=""))
    channel = Channel(training_node.TrainingNode, "127.0.0.1", port)
    for reason, name, *arguments in (
        ("is not that of '10.0.0.9:1'", "tell", PROTOCOL, forged),
        ("expected an address", "tell", PROTOCOL, peer_struct(peer_at("a..b:80"))),
        ("is said to be of '10.0.0.8:1'", "agree", PROTOCOL, stranger, said),
        ("digest", "store", bytes(32), 4, 0, b"data"),
        ("within the blob", "store", bytes(32), 4, 3, b"data"),
        ("not a job", "submit", PROTOCOL, "key", b"{}"),
    ):
        with pytest.raises(compute_node.Refused) as refused:
            await channel.call(name, *arguments, within=DEADLINE)
        assert reason in refused.value.reason
    await channel.call("tell", PROTOCOL, stranger, within=DEADLINE)  # it may exist; nobody answers there
    await channel.close()


def test_strangers_do_a_member_no_harm(tmp_path, taken):
    seed, member = free_ports(2)
    with running("ring", "supernode", "--port", seed, cwd=tmp_path):
        state = ("--state-dir", tmp_path / "member")
        with running("ring", "node", member, "127.0.0.1", seed, *state, cwd=tmp_path):
            asyncio.run(noise(member))
            asyncio.run(noise_at_supernode(seed))
            shown = tutti("ring", "show", "127.0.0.1", member, "--json", cwd=tmp_path)
            (view,) = json.loads(shown.stdout)
            assert (view["roster"], view["leader"]) == ([f"127.0.0.1:{member}"], f"127.0.0.1:{member}")
            refused(Exit.USAGE, "no job 'none'", "result", "none", "127.0.0.1", member, cwd=tmp_path)
            refused(
                Exit.CONFLICT,
                "another node runs with the state directory",
                "node",
                taken,
                "127.0.0.1",
                seed,
                *state,
                cwd=tmp_path,
            )


async def noise_at_supernode(port: int) -> None:
    channel = Channel(supernode.Supernode, "127.0.0.1", port)
    with pytest.raises(compute_node.Refused) as refused:
        await channel.call("enrol", PROTOCOL, peer_struct(Peer(5, "10.0.0.9:1")), within=DEADLINE)
    assert "is not that of" in refused.value.reason
    with pytest.raises(UnknownCall, match="there is no call 'show'"):
        await Channel(training_node.TrainingNode, "127.0.0.1", port).call("show", PROTOCOL, within=DEADLINE)
    await channel.close()


def test_nobody_there(tmp_path, taken):
    port = free_port()
    refused(Exit.UNREACHABLE, "cannot reach", "show", "127.0.0.1", port, cwd=tmp_path)
    refused(Exit.UNREACHABLE, "no supernode answers", "node", taken, "127.0.0.2", port, "--state-dir", tmp_path,
            "--host", "127.0.0.2", cwd=tmp_path)  # fmt: skip
    refused(Exit.UNREACHABLE, "cannot reach", "train", "127.0.0.1", port, "--dataset", "d", "--model", "mlp",
            cwd=tmp_path)  # fmt: skip
    refused(Exit.USAGE, "HOST:PORT", "node", 5001, "127.0.0.1", 9091, "--seed", "nonsense", cwd=tmp_path)
    done = tutti("join", "thrift://nonsense", "--data", "digits", cwd=tmp_path)
    assert (done.returncode, "thrift://127.0.0.1:9091" in done.stderr) == (Exit.USAGE, True)


def test_data_are_not_displaced_below_a_job(tmp_path):
    """Neither for a job that cannot be, nor for another unless somebody says so; then `ring show` says who waits."""
    seed, member = free_ports(2)
    (tmp_path / "mine.csv").write_text("a,b,y\n" + "".join(f"{k},{k % 7},{k % 2}\n" for k in range(40)))
    train = ("train", "127.0.0.1", seed, "--rounds", 100_000, "--detach", "--data")
    other = (*train, "csv:path=mine.csv,target=y", "--model")
    with (
        running("ring", "supernode", "--port", seed, cwd=tmp_path),
        running("ring", "node", member, "127.0.0.1", seed, "--state-dir", "state", cwd=tmp_path),
    ):
        started = tutti("ring", *train, "digits", "--model", "linear", "--json", cwd=tmp_path)
        assert started.returncode == 0, started.stderr
        job = json.loads(started.stdout)["job"]
        refused(Exit.USAGE, "there is no model 'nosuch'", *other, "nosuch", cwd=tmp_path)
        refused(Exit.CONFLICT, f"the job {job} is not over and trains on 'digits'", *other, "linear", cwd=tmp_path)
        assert asyncio.run(waits_on(member)) == []
        replaced = tutti("ring", *other, "linear", "--replace", cwd=tmp_path)
        assert replaced.returncode == 0, replaced.stderr
        assert f"{job} on 'digits' waits for nodes: 1 are needed, 0 are ready" in asyncio.run(waits_on(member, 1))[0]


async def waits_on(port: int, least: int = 0) -> list[str]:
    """What the whole ring says of jobs that wait, once at least so many lights say so."""
    client = RingClient(f"127.0.0.1:{port}")
    try:
        async with asyncio.timeout(DEADLINE):
            async for views in client.watch():
                found = [light.detail for light in ring_lights(views) if light.name == "jobs go on" and not light.ok]
                if len(found) >= least:
                    return found
    finally:
        await client.close()
    return []
