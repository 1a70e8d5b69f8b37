"""How nodes of a broker reach a bucket: by pre-signed addresses, each for what the coordinator lets the node do."""

from collections.abc import Callable

from tutti.adapters.blobs.s3 import S3Blobs
from tutti.core.errors import Conflict, NotFound
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import TooLarge, check_digest

LINK_SECONDS = 3600.0
"""How long an address is good for; whoever comes later asks for a new one."""


class BucketDepot:
    """A Depot. `may_read` says whether a node may have a blob, `update_limit` the most bytes it may store now."""

    def __init__(
        self, blobs: S3Blobs, may_read: Callable[[NodeId, Digest], bool], update_limit: Callable[[NodeId], int]
    ) -> None:
        self._blobs, self._may_read, self._update_limit = blobs, may_read, update_limit

    async def download(self, node: NodeId, digest: Digest) -> str:
        check_digest(digest)
        if not self._may_read(node, digest):
            raise NotFound(f"there is no blob {digest}")
        return await self._blobs.link(digest, LINK_SECONDS)

    async def upload(self, node: NodeId, digest: Digest, size: int) -> str:
        limit = self._limit(node)
        if size > limit:
            raise TooLarge(f"at most {limit} bytes are allowed here, {size} were announced")
        return await self._blobs.upload_link(digest, node, LINK_SECONDS)

    async def arrived(self, node: NodeId, digest: Digest) -> None:
        await self._blobs.adopt(digest, node, self._limit(node))

    def _limit(self, node: NodeId) -> int:
        if (limit := self._update_limit(node)) == 0:
            raise Conflict(f"no update of {node} is expected now: its round has closed, or it was not asked")
        return limit
