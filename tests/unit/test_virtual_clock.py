"""The event loop on virtual time."""

import asyncio

import pytest

from tutti.sim.worlds.clock import Standstill, VirtualLoop, run


def test_time_jumps() -> None:
    async def main() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []
        loop = asyncio.get_running_loop()

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, loop.time()))

        await asyncio.gather(sleeper("c", 86_400 * 365), sleeper("a", 1), sleeper("b", 2.5))
        return seen

    assert run(main()) == [("a", 1.0), ("b", 2.5), ("c", 86_400.0 * 365)]


def test_a_timeout_passes_virtually() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == 3600.0


def test_executors_work_at_once_and_take_what_they_say() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[tuple[str, float]] = []

        def work() -> str:
            for step in range(3):
                loop.spend(10)
                loop.call_soon_threadsafe(lambda step=step: seen.append((f"step {step}", loop.time())))
            return "done"

        working = asyncio.to_thread(work)
        result, _ = await asyncio.gather(working, asyncio.sleep(15))
        seen.append((result, loop.time()))
        return seen

    assert run(main()) == [("step 0", 10.0), ("step 1", 20.0), ("step 2", 30.0), ("done", 30.0)]


def test_an_executors_error_arrives() -> None:
    async def main() -> None:
        await asyncio.to_thread(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        run(main())


def test_a_standstill_is_noticed() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Standstill):
        run(main())
