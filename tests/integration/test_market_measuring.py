"""Machines are measured, not believed: liars about GPUs, wrong and late answers, and jobs that want a GPU."""

from dataclasses import replace

import msgspec
import pytest

from support.market import Marketplace
from support.served import app_of, caller
from tutti.adapters.gpu import answer_on, gpu_answer
from tutti.adapters.machine import Machine
from tutti.core import challenge
from tutti.domain.market.jobs import Status
from tutti.domain.market.rules import RULES
from tutti.domain.nodes import Capabilities
from tutti.services.market.measuring import EVERY
from tutti.services.market.worker import Worker


class Boasting(Machine):
    """Says that it has a GPU, which nobody has seen."""

    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities(), gpus=("NVIDIA H100",))


@pytest.fixture
async def place(tmp_path):
    place = Marketplace(tmp_path)
    place.rules = replace(RULES, gpu=1e5)  # whatever this machine has: no processor does 100 TFLOP/s
    await place.open()
    yield place
    await place.close()


async def told_of(place: Marketplace, name: str) -> dict:
    async with caller(app_of(place)) as http:
        answer = await http.get(f"/api/v1/market/workers/{name}")
    return answer.json()


def made_up(seed: int, steps: int) -> bytes:
    return bytes(512 * 64)


@pytest.mark.parametrize("gpu", [None, challenge.answer, made_up])
async def test_a_claimed_gpu_that_is_not_measured_gets_no_job_that_wants_one_and_is_told_of(place, gpu):
    await place.hire("liar", machine=Boasting(), gpu=gpu)
    job = await place.submit("kmeans", 10, gpu=True)
    await place.floor.measuring.idle.wait()
    await place.until_market(lambda: place.market.job(job.id).funded)
    assert await place.floor.assigning.assign() == 0
    assert place.market.job(job.id).status is Status.PENDING
    told = await told_of(place, "liar")
    assert (told["gpu_type"], told["gpu_gflops"] < 1e5) == ("NVIDIA H100", True)
    assert "the GPU 'NVIDIA H100' is unverified" in told["note"]
    (plain,) = await place.settled(await place.submit("kmeans", 10))
    assert plain.attempt(1).worker == "liar"  # it works as fast as its processor is


async def test_a_job_that_wants_a_gpu_goes_to_a_worker_whose_gpu_was_measured(tmp_path):
    place = Marketplace(tmp_path)
    place.rules = replace(RULES, gpu=1e-3)  # so that this processor passes for a GPU
    await place.open()
    try:
        await place.hire("plain")
        job = await place.submit("kmeans", 10, gpu=True)
        await place.hire("gpu-box", machine=Boasting(), gpu=challenge.answer)
        (job,) = await place.settled(job)
        assert [attempt.worker for attempt in job.attempts] == ["gpu-box"]
        assert (await told_of(place, "gpu-box"))["note"] == ""
    finally:
        await place.close()


class Fickle(Worker):
    """Is measured well when it comes, and makes up its answers later."""

    lies = False

    async def _measure(self, asked) -> None:
        self.cpu = (lambda seed, steps: bytes(512 * 64)) if Fickle.lies else challenge.answer
        await super()._measure(asked)


async def test_who_answers_wrongly_now_and_then_is_given_no_work(place):
    Fickle.lies = False
    await place.hire("ada", worker=Fickle)
    await place.floor.measuring.idle.wait()
    ada = place.market.worker("ada").gflops
    assert ada > 0
    Fickle.lies = True
    place.later = EVERY + 1.0
    await place.floor.measuring.look(["ada"])
    await place.until_market(lambda: place.market.worker("ada").gflops == 0)
    job = await place.submit("kmeans", 10)
    await place.until_market(lambda: place.market.job(job.id).funded)
    assert await place.floor.assigning.assign() == 0


def test_a_gpu_says_to_the_bit_what_a_processor_says():
    """Where there is one, on it; else PyTorch's own arithmetic on the processor stands in."""
    torch = pytest.importorskip("torch")
    on_gpu = gpu_answer()
    found = on_gpu(7, 50) if on_gpu else answer_on(torch.device("cpu"), 7, 50)
    assert found == challenge.answer(7, 50)
