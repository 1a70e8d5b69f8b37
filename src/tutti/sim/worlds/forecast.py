"""A forecast for a job in a world: from what the world says of its nodes, instead of what they did before."""

from statistics import mean

import numpy as np

from tutti.domain.forecast import Forecast, Pace, forecast
from tutti.domain.spec import JobSpec
from tutti.ports.training import models
from tutti.services.forecast import slots_of
from tutti.sim.worlds.data import data_of
from tutti.sim.worlds.distributions import Draw, drawn
from tutti.sim.worlds.node import profiles
from tutti.sim.worlds.world import World

TRAVELS = 6
"""Times that something is under way in one task: the task, two there and back for each blob, the submission."""

DRAWS = 1000


def forecast_world(world: World, spec: JobSpec) -> Forecast:
    """What the job takes if all nodes are there and nothing breaks."""
    latency, jitter = _mean(drawn(world.network.latency)), _mean(drawn(world.machine.jitter))
    paces, schema = {}, None
    for number, (profile, data) in enumerate(zip(profiles(world), data_of(world), strict=True), start=1):
        schema = data.schema
        paces[world.name(number)] = Pace(
            examples=len(data.train),
            held_out=len(data.held_out),
            speed=profile.speed / jitter,
            overhead=TRAVELS * latency,
            up=profile.up,
            down=profile.down,
        )
    assert schema is not None
    parameters = models.build(spec.model, data=schema).init(spec.seed).layout.size
    return forecast(
        spec,
        schema,
        parameters,
        paces,
        watts=world.machine.watts,
        joules=world.network.joules,
        slots=slots_of(spec),
    )


def _mean(draw: Draw) -> float:
    rng = np.random.default_rng(0)
    return mean(draw(rng) for _ in range(DRAWS))
