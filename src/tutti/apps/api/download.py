"""A model as a file that needs nothing beside it: the stored tensors, and in the header what they are."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response, StreamingResponse

from tutti.core.errors import NotFound
from tutti.domain.events import Digest
from tutti.domain.jobs import Job
from tutti.ports import BlobStore
from tutti.ports.blobs import Mapped
from tutti.services.views import described

CHUNK = 256 * 1024


async def model_response(job: Job, round: int | None, blobs: BlobStore) -> Response:
    """The file of the job's current model (`round` None) or of the one a round made; raises NotFound."""
    digest = job.model if round is None else job.model_of(round)
    if not digest:
        which = "no model yet" if round is None else f"no model of round {round}: {job.rounds_done} rounds are done"
        raise NotFound(f"job {job.id} has {which}")
    made_in = _round_of(job, digest) if round is None else round
    stored = await _kept(job, made_in, digest, blobs)
    metadata = {"tutti.job": job.id, **described(job.spec, job.data, digest, made_in)}
    head, skip = _with_metadata(stored, metadata)
    size = len(head) + len(stored) - skip
    headers = {
        "content-length": str(size),
        "content-disposition": f'attachment; filename="{job.id}-round-{made_in}.safetensors"',
        "etag": f'"{digest}"',
    }
    return StreamingResponse(_chunks(head, stored, skip), media_type="application/octet-stream", headers=headers)


async def _kept(job: Job, round: int, digest: Digest, blobs: BlobStore) -> Mapped:
    """Verified: a model that the disk damaged must not leave the house."""
    try:
        return await blobs.read(digest)
    except NotFound:
        raise NotFound(f"the model of round {round} of job {job.id} is not kept any more, only its record is") from None


def _round_of(job: Job, digest: Digest) -> int:
    return next((n for n in range(job.rounds_done, 0, -1) if job.model_of(n) == digest), 0)


def _with_metadata(stored: Mapped, extra: Mapping[str, str]) -> tuple[bytes, int]:
    """The file's head (length and JSON header) with more metadata, and how many bytes of the file it replaces."""
    length = int.from_bytes(stored[:8], "little")
    header = json.loads(bytes(stored[8 : 8 + length]))
    header["__metadata__"] = {**header.get("__metadata__", {}), **extra}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text, 8 + length


async def _chunks(head: bytes, stored: Mapped, skip: int) -> AsyncIterator[bytes]:
    yield head
    view = memoryview(stored)
    for start in range(skip, len(stored), CHUNK):
        yield await asyncio.to_thread(bytes, view[start : start + CHUNK])  # it may not be cached
