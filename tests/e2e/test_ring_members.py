"""Members of a ring in processes of their own: by link, by any of several seeds, from memory, over TLS."""

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL

import pytest

from support.authority import certificate
from support.commands import background, running, tutti
from support.ports import free_ports
from tutti.apps.cli.exits import Exit
from tutti.apps.ringclient import RingClient
from tutti.apps.ringentry import Tls

DEADLINE = 120


async def views_when(port, condition, tls=None):
    client = RingClient(f"127.0.0.1:{port}", tls)
    try:
        async with asyncio.timeout(DEADLINE):
            async for views in client.watch():
                if condition(views):
                    return views
    finally:
        await client.close()


def all_there(count):
    return lambda views: len(views) == count and all(len(view.roster) == count and view.leader for view in views)


@pytest.fixture
def processes():
    with ExitStack() as stack:
        yield stack


def test_seeds_memory_and_mutual_tls(tmp_path: Path, processes):
    """A member joins by the seed that is there, or else by whom it has met; without a certificate nobody does."""
    authority = certificate(tmp_path / "authority", None, None)
    certificate(tmp_path / "ours", *authority)
    files = Tls(certificate=tmp_path / "ours.pem", key=tmp_path / "ours.key", authority=tmp_path / "authority.pem")
    tls = ("--tls-cert", files.certificate, "--tls-key", files.key, "--tls-ca", files.authority)
    dead, seed, first, second = free_ports(4)

    def member(port):
        state = ("--state-dir", tmp_path / str(port))
        seeds = ("127.0.0.1", dead, "--seed", f"127.0.0.1:{seed}")
        return processes.enter_context(running("ring", "node", port, *seeds, *state, *tls, cwd=tmp_path))

    supernode = processes.enter_context(running("ring", "supernode", "--port", seed, *tls, cwd=tmp_path))
    member(first)
    again = member(second)
    lives = {v.address: v.incarnation for v in asyncio.run(views_when(first, all_there(2), files))}
    refused = tutti("ring", "show", "127.0.0.1", first, cwd=tmp_path)
    assert (refused.returncode, "Traceback" in refused.stderr) == (Exit.UNREACHABLE, False), refused.stderr
    assert "if it wants TLS, give --tls-cert" in refused.stderr
    remembered = tmp_path / str(second) / "ring.json"
    asyncio.run(views_when(first, lambda views: f"127.0.0.1:{first}" in remembered.read_text(), files))
    supernode.end(SIGKILL)
    again.end(SIGKILL)
    member(second)  # neither seed is there
    views = asyncio.run(views_when(first, all_there(2), files))
    lives[f"127.0.0.1:{second}"] += 1
    assert {view.address: view.incarnation for view in views} == lives


def test_who_comes_first_may_die_at_once(tmp_path: Path, processes):
    """The supernode has told the next one of it; it begins the ring itself, and takes the first one in."""
    seed, first, second = free_ports(3)
    processes.enter_context(running("ring", "supernode", "--port", seed, cwd=tmp_path))

    def member(port):
        state = ("--state-dir", tmp_path / str(port))
        return processes.enter_context(running("ring", "node", port, "127.0.0.1", seed, *state, cwd=tmp_path))

    member(first).end(SIGKILL)
    member(second)
    asyncio.run(views_when(second, lambda views: len(views) == 1 and views[0].joined and views[0].leader))
    member(first)
    asyncio.run(views_when(second, lambda views: all_there(2)(views) and len({view.digest for view in views}) == 1))


def check_signed(folder: Path, ports: list[int]) -> None:
    """Every member's chain proves whose key has signed every update, while the member runs."""
    addresses = {view.address: view.signs_as for view in asyncio.run(views_when(ports[0], all_there(2)))}
    keys = {address.replace(":", "-"): its for address, its in addresses.items()}
    signers = [word for node, its in keys.items() for word in ("--signer", f"{node}={its}")]
    for port in ports:
        checked = tutti("ring", "verify", folder / str(port), *signers, "--json", cwd=folder)
        assert checked.returncode == 0, checked.stderr
        found = json.loads(checked.stdout)["signers"]
        assert {each["node"]: (each["address"], each["updates"]) for each in found} == {
            node: (its, 2) for node, its in keys.items()
        }
    node, *_ = keys
    other = tutti("ring", "verify", folder / str(ports[0]), "--signer", f"{node}=0x{'1' * 40}", cwd=folder)
    assert (other.returncode, "signs as 0x1111" in other.stderr) == (Exit.USAGE, True), other.stderr


def test_a_member_that_has_lost_its_state_folder_signs_with_another_key_for_all_to_see(tmp_path: Path, processes):
    seed, *ports = free_ports(3)
    processes.enter_context(running("ring", "supernode", "--port", seed, cwd=tmp_path))

    def member(part, port):
        data = ("--data", f"digits:part={part}/2", "--state-dir", tmp_path / str(port))
        return processes.enter_context(running("ring", "node", port, "127.0.0.1", seed, *data, cwd=tmp_path))

    def train():
        asyncio.run(
            views_when(seed, lambda views: all_there(2)(views) and any(v.holders.get("digits") == 2 for v in views))
        )
        job = ("--dataset", "digits", "--model", "linear", "--rounds", "1", "--json")
        done = tutti("ring", "train", "127.0.0.1", seed, *job, "--set", "cohort.min_nodes=2", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    members = {port: member(part, port) for part, port in enumerate(ports)}
    train()
    (leader,) = {view.leader for view in asyncio.run(views_when(seed, all_there(2)))}
    stays = int(leader.rpartition(":")[2])
    (loses,) = set(ports) - {stays}
    members[loses].end(SIGKILL)
    (tmp_path / str(loses)).rename(tmp_path / "lost")
    member(ports.index(loses), loses)
    train()
    checked = tutti("ring", "verify", tmp_path / str(stays), "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    signed = [(each["node"], each["updates"]) for each in json.loads(checked.stdout)["signers"]]
    gone = f"127.0.0.1-{loses}"
    assert sorted(signed) == sorted([(f"127.0.0.1-{stays}", 2), (gone, 1), (gone, 1)])


def test_join_by_link_and_go_on_without_a_majority(tmp_path: Path, processes):
    seed, *ports = free_ports(3)
    processes.enter_context(running("ring", "supernode", "--port", seed, cwd=tmp_path))
    members = {}
    for part, port in enumerate(ports):
        join = ("join", f"thrift://127.0.0.1:{seed}", "--data", f"digits:part={part}/2", "--port", port)
        state = ("--state-dir", tmp_path / str(port))
        members[f"127.0.0.1:{port}"] = processes.enter_context(running(*join, *state, cwd=tmp_path))
    asyncio.run(
        views_when(ports[0], lambda views: all_there(2)(views) and any(v.holders.get("digits") == 2 for v in views))
    )
    job = ("--dataset", "digits", "--model", "linear", "--rounds", "2")
    done = tutti("ring", "train", "127.0.0.1", seed, *job, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 2
    check_signed(tmp_path, ports)
    taken = tutti("ring", "train", "127.0.0.1", seed, "--data", "digits", "--model", "linear", cwd=tmp_path)
    assert (taken.returncode, "trains on data of its own" in taken.stderr) == (Exit.CONFLICT, True), taken.stderr

    needless = tutti("ring", "force-reform", "127.0.0.1", ports[0], cwd=tmp_path)
    assert (needless.returncode, "nothing to force" in needless.stderr) == (Exit.CONFLICT, True), needless.stderr
    (leader,) = {view.leader for view in asyncio.run(views_when(ports[0], all_there(2)))}
    members.pop(leader).end(SIGKILL)  # of two, it was the committee
    (survivor,) = members
    port = survivor.rpartition(":")[2]
    asyncio.run(views_when(port, lambda views: [view.address for view in views] == [survivor]))
    with background("ring", "train", "127.0.0.1", port, *job, cwd=tmp_path) as waits:
        assert "nobody leads the ring" in waits.stderr.readline()

    def forced(views):
        done = tutti("ring", "force-reform", "127.0.0.1", port, cwd=tmp_path)
        return done.returncode == 0 or "nothing to force" not in done.stderr  # while the leader may still be alive

    asyncio.run(views_when(port, forced))
    (view,) = asyncio.run(views_when(port, lambda views: views[0].leader == survivor))
    assert (view.generation, view.roster) == (1, (survivor,))
    assert [light.name for light in view.lights if not light.ok] == ["whole"]


def other_rings(view):
    (light,) = [light for light in view.lights if light.name == "no other ring"]
    return [] if light.ok else light.detail.removesuffix(" of another that is in use").split(", ")


def test_two_rings_that_were_both_used_stay_apart_and_say_so(tmp_path: Path, processes):
    """Also when a supernode knows both; a member of one is told why it cannot join the other."""
    one, other, common, *ports = free_ports(8)
    first, second = ports[:2], ports[2:4]
    for seed in (one, other):
        processes.enter_context(running("ring", "supernode", "--port", seed, cwd=tmp_path))

    def command(port, seed, *options):
        state = ("--state-dir", tmp_path / str(port))
        return ("ring", "node", port, "127.0.0.1", seed, *state, *options)

    for seed, members in ((one, first), (other, second)):
        for port in members:
            seeds = ("--seed", f"127.0.0.1:{common}")  # where nobody is yet
            member = processes.enter_context(running(*command(port, seed, *seeds), cwd=tmp_path))
        asyncio.run(views_when(members[0], all_there(2)))
    processes.enter_context(running("ring", "supernode", "--port", common, cwd=tmp_path))
    for members in (first, second):
        views = asyncio.run(views_when(members[0], lambda views: any(map(other_rings, views))))
        assert {view.address for view in views} == {f"127.0.0.1:{port}" for port in members}
        strangers = {address for view in views for address in other_rings(view)}
        assert strangers <= {f"127.0.0.1:{port}" for port in {*first, *second} - {*members}}

    member.end(SIGKILL)
    elsewhere = tutti(*command(second[1], one), cwd=tmp_path)
    assert elsewhere.returncode == Exit.CONFLICT, elsewhere.stderr
    assert "Two rings that were both used never become one. To join that one" in elsewhere.stderr
    undecided = tutti(*command(ports[4], one, "--seed", f"127.0.0.1:{other}"), cwd=tmp_path)
    assert undecided.returncode == Exit.CONFLICT, undecided.stderr
    assert "the supernodes know two rings" in undecided.stderr
    (tmp_path / str(second[1])).rename(tmp_path / "left behind")
    processes.enter_context(running(*command(second[1], one), cwd=tmp_path))
    asyncio.run(views_when(first[0], all_there(3)))
