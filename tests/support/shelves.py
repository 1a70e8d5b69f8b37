"""Keys on the members of a ring in one process: every offer is carried out at once, and counted."""

from support.rings import World
from tutti.ring import keys
from tutti.ring.chord import Due, Found, Task
from tutti.ring.keys import Offer, Shelf


class Shelves:
    def __init__(self, world: World) -> None:
        self.world = world
        self.at: dict[int, Shelf] = {id: Shelf() for id in world.members}
        self.moved = 0

    def shelf(self, id: int) -> Shelf:
        return self.at.setdefault(id, Shelf())

    def repair(self) -> None:
        """One round of repair of the ring, and what the keys need in consequence."""
        before = dict(self.world.members)
        self.world.repair()
        for id, member in list(self.world.members.items()):
            old = before.get(id, member)
            if offer := keys.handed_over(old, member, self.shelf(id)):
                self.carry_out(id, offer)
            self.at[id] = keys.after_change(member, self.shelf(id))
        for id, member in list(self.world.members.items()):
            for offer in keys.copies(member, self.shelf(id)):
                self.carry_out(id, offer)
            for key in keys.strays(member, self.shelf(id)):
                self.return_to_owner(id, key)

    def carry_out(self, id: int, offer: Offer) -> None:
        there = self.world.members.get(offer.to.id)
        if there is None or there.me != offer.to:
            return
        missing = self.shelf(offer.to.id).missing(offer.keys)
        self.moved += len(missing)
        self.at[offer.to.id] = self.shelf(offer.to.id).with_keys(missing)
        self.at[id] = self.shelf(id).confirming(offer.to, offer.keys)

    def return_to_owner(self, id: int, key: int) -> None:
        holders = self.look_up(id, key).holders
        if not holders or holders[0].id not in self.world.members or holders[0].id == id:
            return
        owner = self.world.members[holders[0].id]
        self.carry_out(id, Offer(owner.me, frozenset({key})))
        word = keys.safe(owner, self.shelf(owner.me.id), {key})
        self.at[id] = keys.without(self.world.members[id], self.shelf(id), word, (owner.me, *keys.replicas(owner)))

    def look_up(self, id: int, key: int) -> Found:
        self.world.due(id, Due(Task.LOOKUP, key=key))
        while self.world.asks[id]:
            self.world.ask(id, self.world.asks[id].popleft())
        return self.world.found.pop()

    def holders(self, key: int) -> set[int]:
        return {id for id in self.world.members if key in self.shelf(id).keys}
