"""How nodes of a broker reach a bucket: by pre-signed addresses, each for what the coordinator lets the node do."""

import asyncio
import logging
from collections.abc import Callable

from tutti.adapters.blobs.mirrored import MirroredBlobs
from tutti.core.errors import Conflict, CorruptBlob, NotFound, TuttiError
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import TooLarge, check_digest

log = logging.getLogger(__name__)

LINK_SECONDS = 3600.0
"""How long an address is good for; whoever comes later asks for a new one."""

LINKS_KEPT = 64
TIDY_SECONDS = 3600.0


class BucketDepot:
    """A Depot. `may_read` says whether a node may have a blob, `update_limit` the most bytes it may store now."""

    def __init__(
        self, blobs: MirroredBlobs, may_read: Callable[[NodeId, Digest], bool], update_limit: Callable[[NodeId], int]
    ) -> None:
        self._blobs, self._may_read, self._update_limit = blobs, may_read, update_limit
        self._links: dict[Digest, tuple[str, float]] = {}

    async def download(self, node: NodeId, digest: Digest) -> str:
        """One address does for all nodes that may read the blob: it is looked for once."""
        check_digest(digest)
        if not self._may_read(node, digest):
            raise NotFound(f"there is no blob {digest}")
        now = asyncio.get_running_loop().time()
        link, until = self._links.get(digest, ("", 0.0))
        if now > until:
            link = await self._blobs.far.link(digest, LINK_SECONDS)
            self._links[digest] = link, now + LINK_SECONDS / 2
            for old in list(self._links)[:-LINKS_KEPT]:
                del self._links[old]
        return link

    async def upload(self, node: NodeId, name: str, size: int = 0) -> str:
        limit = self._limit(node)
        if size > limit:
            raise TooLarge(f"at most {limit} bytes are allowed here, {size} were announced")
        return await self._blobs.far.upload_link(node, name, LINK_SECONDS)

    async def arrived(self, node: NodeId, digest: Digest, *names: str) -> str:
        limit = self._limit(node)
        missing: TuttiError = NotFound(f"there is no blob {digest}")
        for name in names:
            try:
                await self._blobs.take_in(digest, node, name, limit)
            except (NotFound, CorruptBlob) as error:
                missing = error
            else:
                return name
        raise missing

    async def forget(self, node: NodeId, name: str) -> None:
        try:
            await self._blobs.far.forget_upload(node, name)
        except TuttiError as error:
            log.warning("%s; it goes within a day", error)

    async def keep_tidy(self) -> None:
        """Clear away what nodes stored and never handed in, now and then. Never ends."""
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            try:
                await self._blobs.far.forget_old_uploads()
            except TuttiError as error:
                log.warning("%s", error)

    def _limit(self, node: NodeId) -> int:
        if (limit := self._update_limit(node)) == 0:
            raise Conflict(f"no update of {node} is expected now: its round has closed, or it was not asked")
        return limit
