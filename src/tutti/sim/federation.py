"""Who takes part in a simulation: named nodes, each of which owns some rows of one array."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from tutti.adapters.datasets import Carving, Source, carve_all
from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.domain.events import NodeId
from tutti.domain.spec import DataSchema
from tutti.ports.training import Data, Examples, datasets

Rowset = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Federation:
    """Nodes by name. All rows lie in one place, so a node that is not at work costs its row numbers only.

    Attributes:
        rows: The examples of all nodes.
        train: Which rows each node trains on.
        held_out: Which rows each node measures models on.
    """

    name: str
    schema: DataSchema
    rows: Examples
    train: Mapping[NodeId, Rowset]
    held_out: Mapping[NodeId, Rowset]

    @classmethod
    def divide(
        cls, source: str, nodes: int, partition: str = "iid", *, seed: int = 0, held_out: float = 0.2
    ) -> "Federation":
        """A data source such as `mnist`, divided by a partitioner among node-1 to node-N.

        Node k holds what `tutti join … --data <source>:part=<k-1>/N,partition=…,seed=…,held_out=…` would.
        """
        found = datasets.build(Choice.parse(source))
        if not isinstance(found, Source):
            raise UserError(f"data source {source!r} gives no rows to divide; make a Federation.of its parts instead")
        carving = _carving(found.carving, partition, seed, held_out)
        rows = found.read()
        examples, parts = carve_all(rows, carving, nodes)
        names = [f"node-{number}" for number in range(1, nodes + 1)]
        return cls(
            rows.name or found.name,
            rows.schema,
            examples,
            {name: train for name, (train, _) in zip(names, parts, strict=True)},
            {name: held for name, (_, held) in zip(names, parts, strict=True)},
        )

    @classmethod
    def of(cls, parts: Mapping[NodeId, Data]) -> "Federation":
        """Nodes whose data are at hand already, all of one name and schema."""
        kinds = {(data.name, data.schema) for data in parts.values()}
        if len(kinds) != 1:
            raise UserError(f"expected nodes with data of one name and kind, came {len(kinds)} kinds")
        name, schema = kinds.pop()
        pieces = [piece for data in parts.values() for piece in (data.train, data.held_out)]
        ends = np.cumsum([len(piece) for piece in pieces])
        spans = [np.arange(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
        rows = Examples(np.concatenate([p.x for p in pieces]), np.concatenate([p.y for p in pieces]))
        trains, held = dict(zip(parts, spans[::2], strict=True)), dict(zip(parts, spans[1::2], strict=True))
        return cls(name, schema, rows, trains, held)

    @property
    def nodes(self) -> list[NodeId]:
        return list(self.train)

    def examples(self, node: NodeId) -> Examples:
        """A copy of the rows that a node trains on."""
        return self._take(self.train[node])

    def measured_on(self, node: NodeId) -> Examples:
        """A copy of the rows that a node holds out."""
        return self._take(self.held_out[node])

    def fingerprint(self) -> str:
        """A digest of who has which labels, cheap enough to compare before an interrupted run goes on."""
        digest = blake3(repr((self.name, self.schema)).encode())
        digest.update(np.ascontiguousarray(self.rows.y).tobytes())
        for node in self.train:
            digest.update(f"{node} {len(self.held_out[node])}".encode())
            digest.update(self.train[node].tobytes())
        return digest.hexdigest()

    def _take(self, index: Rowset) -> Examples:
        return Examples(self.rows.x[index], self.rows.y[index])


def _carving(given: Carving, partition: str, seed: int, held_out: float) -> Carving:
    if (given.partition, given.held_out, given.seed) != (Carving().partition, Carving().held_out, Carving().seed):
        raise UserError("give partition, held_out and seed to the simulation, not to the data source")
    return Carving(given.part, partition.replace(",", ";"), held_out, given.split, seed, given.standardize)
