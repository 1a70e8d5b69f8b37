"""Updates of an open round that other replicas keep: where they are, and their sums, which are merged at its end."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence

from tutti.core.errors import TuttiError, Unavailable
from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.domain.jobs import Job
from tutti.ports import Kept, Summing
from tutti.services.aggregation import Aggregation, Fold

log = logging.getLogger(__name__)


class KeptUpdates:
    """Of one job. What a replica keeps goes with it, and is asked for again: its node has it until the round closes."""

    def __init__(self, summing: Summing | None) -> None:
        self._summing = summing
        self._places: dict[Digest, str] = {}

    def note(self, digest: Digest, kept: Kept | None) -> None:
        """Where the bytes of an update are; None: here."""
        if kept is None:
            self._places.pop(digest, None)
        else:
            self._places[digest] = kept.at

    def clear(self) -> None:
        """The round is over."""
        self._places.clear()

    def gone(self, updates: Iterable[UpdateAccepted], but: Container[NodeId]) -> list[UpdateAccepted]:
        """Updates whose replica cannot be asked any more."""
        places, summing = self._places, self._summing
        if summing is None or not places:
            return []
        away = {place for place in places.values() if not summing.keeps(place)}
        return [each for each in updates if places.get(each.digest) in away and each.node not in but]

    async def merge(
        self, job: Job, aggregation: Aggregation, fold: Fold, updates: Iterable[UpdateAccepted]
    ) -> tuple[list[Digest], list[UpdateAccepted]]:
        """Have what is kept elsewhere summed there, and add it to the fold; the sums' blobs, and updates without."""
        groups = defaultdict[str, list[UpdateAccepted]](list)
        for update in updates:
            if update.node not in fold.counted and (place := self._places.get(update.digest)) is not None:
                groups[place].append(update)
        sums = await asyncio.gather(
            *(self._merge_from(place, job, aggregation, fold, theirs) for place, theirs in groups.items())
        )
        lost = [each for each, found in zip(groups.values(), sums, strict=True) if not found]
        return [found for found in sums if found], [update for theirs in lost for update in theirs]

    async def _merge_from(
        self, place: str, job: Job, aggregation: Aggregation, fold: Fold, updates: Sequence[UpdateAccepted]
    ) -> Digest:
        assert self._summing is not None
        size = len(updates) * aggregation.largest_update(job.parameters)
        try:
            digest = await self._summing.sum_of(place, job.id, fold.key, updates, size)
            await aggregation.merge(fold, updates, digest)
        except TuttiError as error:
            if not isinstance(error, Unavailable):  # else each round would be asked for again, for ever
                self._summing.leave(place, job.id)
            log.warning("job %s: %d updates that %s keeps are asked for again: %s", job.id, len(updates), place, error)
            return ""
        return digest
