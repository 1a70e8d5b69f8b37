"""What the nodes of a world hold."""

from collections.abc import Iterator

import numpy as np

from tutti.adapters.datasets import known_schema
from tutti.ports.training import Data, Examples
from tutti.sim.federation import Federation
from tutti.sim.worlds.distributions import drawn
from tutti.sim.worlds.world import BadWorld, Purpose, World, rng_for


def data_of(world: World) -> Iterator[Data]:
    """The data of each node, in order of their numbers."""
    if world.train:
        whole = Federation.divide(
            str(world.data), world.nodes, world.partition, seed=world.seed, held_out=world.held_out
        )
        for node in whole.nodes:
            yield Data(whole.name, whole.schema, whole.examples(node), whole.measured_on(node))
        return
    schema = known_schema(world.data)
    if schema is None:
        raise BadWorld(f"world: without train the data must be a bundled set, came {world.data}")
    draw = drawn(world.examples)
    for number in range(1, world.nodes + 1):
        rows = max(1, round(draw(rng_for(world, Purpose.MACHINE, number, 1))))
        yield Data(world.data.name, schema, _zeros(rows, schema.shape), _zeros(0, schema.shape))


def _zeros(rows: int, shape: tuple[int, ...]) -> Examples:
    """Rows that take no memory, however many."""
    return Examples(np.broadcast_to(np.float32(0), (rows, *shape)), np.broadcast_to(np.int64(0), (rows,)))
