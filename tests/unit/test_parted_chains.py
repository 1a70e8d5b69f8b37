"""Chains that have parted, and members behind, strange or forgetful: whom a member believes, and what stays."""

from itertools import permutations

import msgspec
import pytest

from tutti.ring import consensus
from tutti.ring.consensus import Ballot, Commit, Durable, Following, Propose, Received, Records, Reform, Seek, Send
from tutti.ring.record import LARGEST, Record, Seat, after, first

NAMES = ("a:1", "b:1", "c:1", "d:1", "e:1")
"""All of five are the committee."""

SEATS = tuple(Seat(name) for name in NAMES)
LARGE = bytes(LARGEST // 3)


def chain_of(length: int, *, body: bytes = b"") -> list[Record]:
    chain = [first(SEATS[0])]
    while len(chain) < length:
        chain.append(after(chain[-1], NAMES[0], SEATS, body))
    return chain


def on(chain: list[Record], leader: str, body: bytes, seats=SEATS) -> list[Record]:
    return [*chain, after(chain[-1], leader, seats, body)]


def forced(chain: list[Record], *survivors: str) -> list[Record]:
    record = after(chain[-1], survivors[0], [Seat(name) for name in survivors], b"")
    return [*chain, msgspec.structs.replace(record, generation=chain[-1].generation + 1)]


def member(name: str, chain: list[Record], incarnation: int = 0) -> consensus.Replica:
    height = chain[-1].height if chain else -1
    return consensus.restored(Seat(name, incarnation), chain, Durable(height) if chain else consensus.NOTHING, 0.0)


def talk(*members: consensus.Replica, begin: tuple[str, str]) -> dict[str, consensus.Replica]:
    """One sends the other a beat; then all messages are delivered until there are no more."""
    replicas = {replica.me: replica for replica in members}
    sender, to = begin
    beat = consensus.Beat(**consensus.header(replicas[sender]), ballot=Ballot(0, sender))
    waiting, count = [Send(to, beat)], 0
    while waiting:
        count += 1
        assert count < 500, "they go on for ever"
        wish = waiting.pop(0)
        if wish.to in replicas:
            replicas[wish.to], more = consensus.handle(replicas[wish.to], Received(wish.message), 0.0)
            waiting += [each for each in more if isinstance(each, Send)]
    return replicas


@pytest.mark.parametrize(
    ("length", "body"),
    [
        *(pytest.param(length, b"", id=f"{length}-small") for length in (2, 16, 17, 40, 300)),
        *(pytest.param(length, LARGE, id=f"{length}-large") for length in (2, 16, 17, 40)),
    ],
)
def test_an_older_generation_gives_way_however_long_it_is(length, body):
    common = chain_of(length, body=body)
    old = on(on(common, NAMES[0], b"chosen by a and c"), NAMES[0], b"and one more")
    new = forced(common, "b:1")
    for _ in range(3):
        new = on(new, "b:1", body, [Seat("b:1")])
    for begin in (("a:1", "b:1"), ("b:1", "a:1")):
        told = talk(member("a:1", old), member("b:1", new), begin=begin)
        assert told["a:1"].chain == told["b:1"].chain == tuple(new)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 5), (5, 1)])
def test_of_two_that_were_forced_one_stays(lengths):
    common = chain_of(20)
    sides = []
    for name, length in zip(("a:1", "d:1"), lengths, strict=True):
        side = forced(common, name)
        for _ in range(length):
            side = on(side, name, LARGE, [Seat(name)])
        sides.append(on(side, name, b"", SEATS))  # they have met again
    best = min(sides, key=lambda side: side[20].digest)
    for begin in (("a:1", "d:1"), ("d:1", "a:1")):
        told = talk(member("a:1", sides[0]), member("d:1", sides[1]), begin=begin)
        assert told["a:1"].chain == told["d:1"].chain == tuple(best)


def test_whoever_forces_again_wins():
    common = chain_of(5)
    sides = [on(forced(common, name), name, b"", SEATS) for name in ("a:1", "d:1")]
    best, worst = sorted(sides, key=lambda side: side[5].digest)
    again = forced(worst, worst[-1].leader)
    told = talk(member("b:1", best), member("c:1", again), begin=("b:1", "c:1"))
    assert told["b:1"].chain == tuple(again)


def test_the_order_of_chains_is_total():
    """Or members could go from one to the other and back, to where they may have promised something."""
    common = chain_of(5)
    chains = [common, on(common, "a:1", b"x"), on(common, "a:1", b"y"), forced(common, "a:1"), forced(common, "b:1")]
    chains += [forced(chains[1], "c:1"), forced(chains[3], "a:1"), on(chains[4], "b:1", b"z", [Seat("b:1")])]
    for one, other, third in permutations(chains, 3):
        assert consensus.stays(one, other) != consensus.stays(other, one)
        if consensus.stays(one, other) and consensus.stays(other, third):
            assert consensus.stays(one, third)


def test_who_founded_a_ring_that_nobody_has_used_joins_another():
    alone, used = [first(Seat("x:1"))], chain_of(5)
    told = talk(member("x:1", alone), member("a:1", used), begin=("a:1", "x:1"))
    assert told["x:1"].chain == tuple(used)
    both = {name: member(name, [first(Seat(name))]) for name in ("x:1", "y:1")}
    told = talk(*both.values(), begin=("x:1", "y:1"))
    assert told["x:1"].chain == told["y:1"].chain
    elsewhere = on([first(Seat("x:1"))], "x:1", b"of another ring", [Seat("x:1"), Seat("a:1")])
    told = talk(member("x:1", elsewhere), member("a:1", used), begin=("a:1", "x:1"))
    assert (told["x:1"].chain, told["a:1"].chain) == (tuple(elsewhere), tuple(used))


def test_records_that_come_twice_and_mixed_up_are_taken_once():
    """Each beat of the leader asks for them anew: what comes twice must neither be lost nor asked for again."""
    common = chain_of(5)
    old = on(on(common, "a:1", b"x"), "a:1", b"y")
    new = common
    for _ in range(12):
        new = on(new, "a:1", LARGE)
    new = forced(new, *NAMES)
    replicas = {"a:1": member("a:1", old), "b:1": member("b:1", new)}
    beat = consensus.Beat(**consensus.header(replicas["b:1"]), ballot=Ballot(0, "b:1"))
    waiting = [Send("a:1", beat)] * 5
    count = 0
    while waiting:
        count += 1
        wish = waiting.pop(0 if count % 3 else -1)
        replicas[wish.to], more = consensus.handle(replicas[wish.to], Received(wish.message), 0.0)
        waiting += [each for each in more if isinstance(each, Send) and each.to in replicas]
    assert replicas["a:1"].chain == tuple(new)
    assert count < 100


def test_two_that_have_nothing_are_quiet():
    state, (asked,) = consensus.handle(member("a:1", []), Seek("b:1"), 0.0)
    assert consensus.handle(member("b:1", []), Received(asked.message), 0.0)[1] == ()
    offer = Records(**consensus.header(member("b:1", [])), records=())
    assert consensus.handle(state, Received(offer), 0.0) == (state, ())


# -- strangers --------------------------------------------------------------------------------------------------


def commit(record: Record, sender: str) -> Commit:
    return Commit(sender=sender, generation=record.generation, height=record.height, tip=record.digest, record=record)


def records(*chain: Record, sender: str) -> Records:
    tip = chain[-1]
    return Records(sender=sender, generation=tip.generation, height=tip.height, tip=tip.digest, records=chain)


def strange_messages(chain: list[Record]):
    """Each of them takes over whoever believes it."""
    tip, evil = chain[-1], [Seat("evil:9")]
    taken = after(tip, "evil:9", evil, b"")
    by_name = after(tip, "a:1", evil, b"")
    yield "a record of a stranger", commit(taken, "evil:9")
    yield "a record in another's name", commit(by_name, "evil:9")
    yield "led by a stranger", commit(taken, "a:1")
    yield "of a height that is not the next", commit(msgspec.structs.replace(by_name, height=9), "a:1")
    yield "of a generation that nobody forced", commit(msgspec.structs.replace(by_name, generation=3), "a:1")
    yield "without members", commit(msgspec.structs.replace(by_name, roster=()), "a:1")
    yield "with one member twice", commit(after(tip, "a:1", [Seat("a:1"), Seat("a:1", 2)], b""), "a:1")
    whole = msgspec.structs.replace(first(evil[0]), generation=10**9)
    yield "a whole chain", records(whole, sender="evil:9")
    yield "a whole chain of a member", records(whole, sender="a:1")
    other = first(evil[0])
    yield "a chain of another founder", records(other, after(other, "evil:9", evil, b""), sender="a:1")
    yield "more of the chain", records(by_name, sender="evil:9")
    jump = msgspec.structs.replace(by_name, generation=10**9)
    yield "two generations at once", records(jump, sender="a:1")
    full = msgspec.structs.replace(by_name, generation=1, body=b"a forced record has none")
    yield "forced with something in it", records(full, sender="a:1")
    of_tip = {"sender": "evil:9", "generation": tip.generation, "height": tip.height, "tip": tip.digest}
    yield "a stranger leads", consensus.Beat(**of_tip, ballot=Ballot(2**40, "evil:9"))


CHAIN = chain_of(4)
STRANGE = dict(strange_messages(CHAIN))


@pytest.mark.parametrize("message", STRANGE.values(), ids=STRANGE)
def test_what_strangers_say_changes_nothing(message):
    state = member("b:1", CHAIN)
    told, wishes = consensus.handle(state, Received(message), 0.0)
    assert told == state
    assert not any(isinstance(wish, consensus.Append) for wish in wishes)


def test_records_are_taken_from_whom_the_shell_has_asked():
    more = on(CHAIN, "a:1", b"", (*SEATS, Seat("new:1")))
    state = member("b:1", CHAIN)
    state, (asked,) = consensus.handle(state, Seek("new:1"), 0.0)
    _, (answer,) = consensus.handle(member("new:1", more), Received(asked.message), 0.0)
    state, _ = consensus.handle(state, Received(answer.message), 0.0)
    assert state.chain == tuple(more)


# -- lost memory --------------------------------------------------------------------------------------------------


def test_who_has_lost_its_memory_votes_only_in_a_seat_of_its_new_life():
    """It may have voted already, at a height that it now comes back to."""
    seats = (Seat("a:1", 5), Seat("b:1", 7), Seat("c:1", 6))
    begin = first(seats[0])
    tip = after(begin, "a:1", seats, b"")
    state = member("b:1", [], incarnation=8)
    state, _ = consensus.handle(state, Received(records(begin, tip, sender="a:1")), 0.0)
    assert state.tip == tip
    header = consensus.header(member("a:1", [begin, tip]))
    wanted = after(tip, "a:1", seats, b"")
    said = []
    for event in (
        Received(consensus.Beat(**header, ballot=Ballot(0, "a:1"))),
        Received(consensus.Accept(**header, ballot=Ballot(0, "a:1"), record=wanted)),
        Received(consensus.Prepare(**header, ballot=Ballot(1, "a:1"))),
        consensus.Tick(),
    ):
        state, wishes = consensus.handle(state, event, 0.0 if not isinstance(event, consensus.Tick) else 100.0)
        said += wishes
    assert said == []
    assert isinstance(state.role, Following)
    anew = after(tip, "a:1", (seats[0], Seat("b:1", 8), seats[2]), b"")
    state, _ = consensus.handle(state, Received(commit(anew, "a:1")), 100.0)
    assert state.votes
    state = consensus.restored(Seat("b:1", 9), state.chain, state.durable, 100.0)  # a restart loses nothing
    assert state.votes


def test_who_has_lost_its_memory_does_not_lead_on():
    seats = (Seat("a:1", 5), Seat("b:1", 7), Seat("c:1", 6))
    begin = first(seats[0])
    tip = after(begin, "a:1", seats, b"")
    state = member("a:1", [], incarnation=9)
    state, _ = consensus.handle(state, Received(records(begin, tip, sender="c:1")), 0.0)
    assert isinstance(state.role, Following)
    state, wishes = consensus.handle(state, Propose(seats, b""), 0.0)
    assert wishes == ()
    state, _ = consensus.handle(state, Reform((Seat("a:1", 9),)), 0.0)
    assert state.votes
