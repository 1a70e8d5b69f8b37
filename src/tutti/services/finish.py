"""Work that has to be done as a whole, whatever becomes of whoever asked for it."""

import asyncio
from collections.abc import Coroutine


async def to_the_end(work: Coroutine[None, None, None]) -> None:
    """Wait for all of `work`, however often the caller is cancelled; only then pass the cancellation on.

    So a cancelled caller cannot part writing from applying, or leave a lock too early. An error of the work is
    raised, or is the cause of the cancellation where there was one.
    """
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    task.result()
