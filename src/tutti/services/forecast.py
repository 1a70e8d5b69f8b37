"""A coordinator's forecast: how fast its nodes are, from what they did in earlier jobs."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tutti.core.params import Params
from tutti.domain.events import NodeId
from tutti.domain.forecast import OVERHEAD_SECONDS, Basis, Forecast, Pace, assumed_speed, forecast, trained_rows
from tutti.domain.jobs import Job
from tutti.domain.nodes import DataSummary, why_not
from tutti.domain.spec import DataSchema, JobSpec, strategy_of
from tutti.services.coordinator import Coordinator
from tutti.wire import tensors

MODELS_KNOWN = 64


class Forecaster:
    """Forecasts for one coordinator. It remembers how large models are: to know that, one has to be made."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._sizes: dict[tuple[str, DataSchema], int] = {}

    async def forecast(self, spec: JobSpec) -> Forecast:
        """What the job would take if it were submitted now; raises a UserError for one that would be refused."""
        data = self._coordinator.check(spec)
        parameters = await self._size(spec, data)
        jobs = self._coordinator.jobs.values()
        paces = {
            node: pace_of(node, summary, spec, parameters, jobs) for node, summary in self._ready(spec, data).items()
        }
        return forecast(spec, data, parameters, paces, slots=slots_of(spec))

    def _ready(self, spec: JobSpec, data: DataSchema) -> dict[NodeId, DataSummary]:
        """The nodes that could take part now, whether or not they are busy."""
        rules = spec.cohort
        ready = {}
        for node, seen in self._coordinator.presence.connected().items():
            its = seen.registration
            if its and why_not(spec, data, its.data, its.terms, rules.size or rules.min_nodes) is None:
                ready[node] = its.data
        return ready

    async def _size(self, spec: JobSpec, data: DataSchema) -> int:
        key = (str(spec.model), data)
        if key not in self._sizes:
            with TemporaryDirectory(prefix="tutti-") as folder:
                path = Path(folder) / "initial.safetensors"
                await self._coordinator.workbench.initial(spec.model, data, spec.seed, path)
                if len(self._sizes) >= MODELS_KNOWN:
                    self._sizes.clear()
                self._sizes[key] = tensors.decode(path.read_bytes()).layout.size
        return self._sizes[key]


def slots_of(spec: JobSpec) -> int:
    """Vectors that the strategy keeps beside the model."""
    return len(strategy_of(spec).init(Params.from_arrays({"w": np.zeros(1, np.float32)})).slots)


def pace_of(node: NodeId, data: DataSummary, spec: JobSpec, parameters: int, jobs: Iterable[Job]) -> Pace:
    """How fast a node will be: as in its latest job with this model; else with another, scaled by parameters."""
    best: tuple[Basis, float, float] | None = None
    for job in jobs:
        given = job.contributions.get(node)
        if given is None or given.seconds <= 0 or job.spec.dataset != spec.dataset or not job.parameters:
            continue
        rows = given.updates * trained_rows(data.examples, job.spec.training, job.spec.training.batch_size or 32)
        speed, overhead = rows / given.seconds, max(0.0, given.waited - given.seconds) / given.updates
        if job.spec.model == spec.model:
            best = ("measured", speed, overhead)
        elif best is None or best[0] == "scaled":
            best = ("scaled", min(speed, speed * job.parameters / parameters), overhead)
    basis, speed, overhead = best or ("assumed", assumed_speed(parameters), OVERHEAD_SECONDS)
    return Pace(examples=data.examples, held_out=data.held_out, speed=speed, overhead=overhead, basis=basis)
