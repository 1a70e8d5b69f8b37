"""A ring in one process whose steps are atomic, as in Zave's model, and the invariants of her proof.

A step is one operation with the one question it asks. What follows from it (asking a candidate, telling the successor)
waits, and is a step of its own; so schedules interleave them in every way.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from itertools import pairwise
from random import Random

from tutti.ring import chord
from tutti.ring.chord import Answered, Ask, Asked, Due, Found, Task, Tell, Told, Unanswered
from tutti.ring.identifiers import Peer
from tutti.ring.member import Member, in_full, towards
from tutti.ring.roster import EMPTY

R = 3


class World:
    """The members by identifier, and what is under way between them."""

    def __init__(self, bits: int = 6) -> None:
        self.bits = bits
        self.members: dict[int, Member] = {}
        self.told: dict[int, deque[Peer]] = defaultdict(deque)
        self.asks: dict[int, deque[Ask]] = defaultdict(deque)
        self.found: list[Found] = []
        self.lives = 0
        self._skipped: dict[int, tuple[Member, int]] = {}

    def peer(self, id: int) -> Peer:
        self.lives += 1
        return Peer(id, f"n{id}", self.lives)

    def ideal(self, ids: Iterable[int], length: int = R) -> None:
        """Begin with a ring in perfect order."""
        peers = [self.peer(id) for id in sorted(ids)]
        for at, peer in enumerate(peers):
            after = tuple((peers[at + 1 :] + peers[:at])[:length])
            self.members[peer.id] = Member(
                peer,
                joined=True,
                predecessor=peers[at - 1],
                successors=after,
                roster=EMPTY.heard(*peers[:at], *peers[at + 1 :]),
                bits=self.bits,
            )

    # -- steps ---------------------------------------------------------------------------------------------

    def join(self, id: int, contact: int | None) -> bool:
        """A look-up of the place and the copying of a list; False if the place is not free."""
        member = chord.found(self.peer(id), self.bits)
        if contact is not None:
            member = Member(member.me, bits=self.bits)
            work = deque(chord.handle(member, Due(Task.JOIN, contact=self.members[contact].me))[1])
            while work and not member.joined:
                member, more = chord.handle(member, self.answer(member, work.popleft()))
                work.extend(more)
            if not member.joined:
                return False
            self.after(id, work)
        self.members[id] = member
        return True

    def fail(self, id: int) -> None:
        del self.members[id]
        self.told.pop(id, None)
        self.asks.pop(id, None)

    def due(self, id: int, event: Due) -> None:
        """Begin a task, with its first question."""
        self.members[id], wishes = chord.handle(self.members[id], event)
        for wish in wishes:
            if isinstance(wish, Ask):
                self.ask(id, wish)
            else:
                self.after(id, [wish])

    def ask(self, id: int, ask: Ask) -> None:
        self.members[id], wishes = chord.handle(self.members[id], self.answer(self.members[id], ask))
        self.after(id, wishes)

    def hear(self, id: int) -> None:
        """Take one `Told` up, and ping the predecessor if need be."""
        self.members[id], wishes = chord.handle(self.members[id], Told(self.told[id].popleft()))
        for wish in wishes:
            self.ask(id, wish)

    def answer(self, member: Member, ask: Ask) -> Answered | Unanswered:
        there = self.members.get(ask.peer.id)
        if there is None or not ask.peer.address:
            return Unanswered(ask)
        if member.joined:
            there, nothing = chord.handle(there, Asked(member.me))
            assert nothing == ()
            self.members[ask.peer.id] = there
        return Answered(ask, towards(there, ask.key))

    def after(self, id: int, wishes: Iterable[chord.Instruction]) -> None:
        for wish in wishes:
            match wish:
                case Tell(peer) if peer.id in self.members:
                    self.told[peer.id].append(self.members[id].me if id in self.members else self.newcomer(id))
                case Ask():
                    self.asks[id].append(wish)
                case Found():
                    self.found.append(wish)

    def newcomer(self, id: int) -> Peer:
        return Peer(id, f"n{id}", self.lives)

    # -- repair without churn --------------------------------------------------------------------------------

    def settle(self, rounds: int = 200) -> int | None:
        """Repair round after round until the ring is perfect; how many that took, or None."""
        for number in range(rounds):
            if self.perfect():
                return number
            self.repair()
            if number % 10 == 9:
                self.heal()
        return None

    def heal(self) -> None:
        """Everybody looks its own place up through a seed, the lowest member."""
        seed = self.members[min(self.members)].me
        for id in list(self.members):
            if id != seed.id:
                self.due(id, Due(Task.HEAL, contact=seed))

    def repair(self) -> None:
        for id in list(self.members):
            self.due(id, Due(Task.STABILISE))
        for id in list(self.members):
            while self.asks[id]:
                self.ask(id, self.asks[id].popleft())
        for id in list(self.members):
            while self.told[id]:
                self.hear(id)

    def perfect(self) -> bool:
        ids = sorted(self.members)
        count = min(len(ids) - 1, chord.list_length(len(ids)))
        for at, id in enumerate(ids):
            member = self.members[id]
            after = (ids[at + 1 :] + ids[:at])[:count]
            if [peer.id for peer in member.successors[:count]] != after:
                return False
            if len(ids) > 1 and (member.predecessor is None or member.predecessor.id != ids[at - 1]):
                return False
        return True

    # -- invariants ------------------------------------------------------------------------------------------

    def lists_with(self, without: int | None = None) -> bool:
        """OneLiveSuccessor, if `without` had failed."""
        live = self.members.keys() - {without}
        return all(
            any(peer.id in live and peer.address for peer in self.members[id].successors) or (len(live) == 1)
            for id in live
        )

    def principals(self) -> int:
        """The members that no list skips, as a bit mask."""
        mask = 0
        for id in self.members:
            mask |= 1 << id
        for id, member in self.members.items():
            known = self._skipped.get(id)
            if known is None or known[0] is not member:
                known = self._skipped[id] = (member, skipped(member))
            mask &= ~known[1]
        return mask

    def faults(self) -> list[str]:
        """Which of Zave's invariants does not hold."""
        if not self.lists_with():
            return ["OneLiveSuccessor"]
        found = []
        if self.principals().bit_count() < R + 1:
            found.append("SufficientPrincipals")
        after = {id: self._first_live(member) for id, member in self.members.items()}
        ring = self._cycle(after)
        if any(self._cycle(after, id) != ring for id in self.members):
            found.append("OneRing, ConnectedAppendages")
        turns = sum(after[id] <= id for id in ring)
        if turns != 1:
            found.append("OrderedRing")
        for id, member in self.members.items():
            ids = [id, *(peer.id for peer in member.successors)]
            if len(set(ids)) < len(ids):
                found.append("NoDuplicates")
            elif sum(b <= a for a, b in pairwise(ids)) > (ids[-1] < id):
                found.append("OrderedLists")
        return found

    def _first_live(self, member: Member) -> int:
        return next((peer.id for peer in member.successors if peer.id in self.members and peer.address), member.me.id)

    def _cycle(self, after: dict[int, int], start: int | None = None) -> frozenset[int]:
        """The cycle that one comes to from `start`."""
        at = next(iter(after)) if start is None else start
        for _ in after:
            at = after[at]
        cycle = [at]
        while (at := after[at]) != cycle[0]:
            cycle.append(at)
        return frozenset(cycle)


def skipped(member: Member) -> int:
    """Bit mask of the identifiers that the member's list passes over."""
    mask, a = 0, member.me.id
    for peer in member.successors:
        mask |= _inside(a, peer.id, member.bits)
        a = peer.id
    return mask


def _inside(a: int, b: int, bits: int) -> int:
    """The identifiers strictly between a and b."""
    if a < b:
        return (1 << b) - (1 << (a + 1))
    return ((1 << (1 << bits)) - (1 << (a + 1))) | ((1 << b) - 1)


def churn(world: World, rng: Random, *, guarded: bool = True, fingers: bool = False) -> None:
    """One random step. `guarded`: no failure breaks the assumptions of the proof. `fingers`: they are fixed too."""
    kinds, weights = ["fail", "join", "due", "ask", "hear"], [2, 2, 6, 6, 6]
    if fingers:
        kinds, weights = [*kinds, "finger"], [*weights, 3]
    for _ in range(20):
        ids = list(world.members)
        kind = rng.choices(kinds, weights)[0]
        id = rng.choice(ids)
        if kind == "fail":
            if len(ids) == 1 or not world.lists_with(id):
                continue
            principals = world.principals()
            if guarded and principals >> id & 1 and principals.bit_count() <= R + 1:
                continue
            world.fail(id)
        elif kind == "join":
            new = rng.randrange(1 << world.bits)
            if new in world.members or not world.join(new, id):
                continue
        elif kind == "due":
            if world.asks[id]:
                continue
            world.due(id, Due(Task.STABILISE))
        elif kind == "finger":
            world.due(id, Due(Task.FINGER, key=(id + (1 << rng.randrange(world.bits))) % (1 << world.bits)))
        elif kind == "ask":
            if not world.asks[id]:
                continue
            world.ask(id, world.asks[id].popleft())
        else:
            if not world.told[id]:
                continue
            world.hear(id)
        return


def any_small(world: World) -> bool:
    return any(in_full(member) for member in world.members.values())
