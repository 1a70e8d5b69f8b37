"""What goes wrong with a ring's commands is said in one line, with the exit code that docs/cli.md gives for it."""

import socket
from pathlib import Path

import pytest

from support.commands import running, tutti
from tutti.apps.cli.exits import Exit


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


def test_what_a_supernode_cannot_do(tmp_path, taken):
    refused(Exit.CONFLICT, "choose another port", "supernode", "--port", taken, cwd=tmp_path)
    members = tmp_path / "compute_node.txt"
    members.write_text("127.0.0.1,5001\n127.0.0.1\n")
    refused(Exit.USAGE, "members file, line 2: expected an address", "supernode", "--members", members, cwd=tmp_path)
    refused(Exit.USAGE, "is on a network, where anybody could join", "supernode", "--host", "0.0.0.0", cwd=tmp_path)


def test_who_may_be_a_member(tmp_path, taken):
    members = tmp_path / "compute_node.txt"
    members.write_text(f"127.0.0.1,{taken}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running("ring", "supernode", "--port", port, "--members", members, cwd=tmp_path):
        state = ("--state-dir", tmp_path / "state")
        refused(Exit.CONFLICT, "is not among the 1 of the supernode's", "node", 1 + taken % 60000, "127.0.0.1", port,
                *state, cwd=tmp_path)  # fmt: skip
        refused(Exit.CONFLICT, "choose another port", "node", taken, "127.0.0.1", port, *state, cwd=tmp_path)
        refused(Exit.USAGE, "has no members yet", "show", "127.0.0.1", port, cwd=tmp_path)


def test_nobody_there(tmp_path, taken):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refused(Exit.UNREACHABLE, "cannot reach", "show", "127.0.0.1", port, cwd=tmp_path)
    refused(Exit.UNREACHABLE, "cannot reach", "train", "127.0.0.1", port, "--dataset", "d", "--model", "mlp",
            cwd=tmp_path)  # fmt: skip
    refused(Exit.USAGE, "HOST:PORT", "node", 5001, "127.0.0.1", 9091, "--seed", "nonsense", cwd=tmp_path)
    done = tutti("join", "thrift://nonsense", "--data", "digits", cwd=tmp_path)
    assert (done.returncode, "thrift://127.0.0.1:9091" in done.stderr) == (Exit.USAGE, True)
