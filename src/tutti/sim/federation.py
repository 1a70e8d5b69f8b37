"""Who takes part in a simulation: named nodes, each of which owns some rows of one array."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from tutti.adapters.datasets import Carving, Source, carve_all
from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.domain.events import NodeId
from tutti.domain.nodes import common_schema
from tutti.domain.policy import Policy
from tutti.domain.spec import DataSchema
from tutti.ports.training import Data, Examples, datasets, normalized
from tutti.services.manifest import Division
from tutti.services.preflight import Told, statistics_of, with_normalization

Rowset = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Federation:
    """Nodes by name. All rows lie in one place, so a node that is not at work costs its row numbers only.

    Attributes:
        rows: The examples of all nodes.
        train: Which rows each node trains on.
        held_out: Which rows each node measures models on.
        missing: How many cells of each node had no value, by column; if `filled`, the mean of the others was put there.
        division: How it was made, if by `divide`; None for parts at hand.
    """

    name: str
    schema: DataSchema
    rows: Examples
    train: Mapping[NodeId, Rowset]
    held_out: Mapping[NodeId, Rowset]
    missing: Mapping[NodeId, Mapping[str, int]] = field(default_factory=dict)
    division: Division | None = None
    filled: bool = False

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
            {name: part.train for name, part in zip(names, parts, strict=True)},
            {name: part.held_out for name, part in zip(names, parts, strict=True)},
            {name: part.missing for name, part in zip(names, parts, strict=True)},
            Division(source=source, nodes=nodes, partition=partition, seed=seed, held_out=held_out),
            carving.missing == "mean",
        )

    @classmethod
    def of(cls, parts: Mapping[NodeId, Data]) -> "Federation":
        """Nodes whose data are at hand already, all of one name and schema."""
        named = sorted({data.name for data in parts.values()})
        if len(named) != 1:
            raise UserError(f"expected nodes with data of one name, came {', '.join(named) or 'no nodes'}")
        (name,) = named
        schema = common_schema(name, {node: data.schema for node, data in parts.items()})
        for node, data in parts.items():
            _check_rows(node, data)
        pieces = [piece for data in parts.values() for piece in (data.train, data.held_out)]
        ends = np.cumsum([len(piece) for piece in pieces])
        spans = [np.arange(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
        rows = Examples(np.concatenate([p.x for p in pieces]), np.concatenate([p.y for p in pieces]))
        trains, held = dict(zip(parts, spans[::2], strict=True)), dict(zip(parts, spans[1::2], strict=True))
        missing, filled = {node: data.missing for node, data in parts.items()}, any(d.filled for d in parts.values())
        return cls(name, schema, rows, trains, held, missing, filled=filled)

    @property
    def nodes(self) -> list[NodeId]:
        return list(self.train)

    def examples(self, node: NodeId) -> Examples:
        """A copy of the rows that a node trains on."""
        return self._take(self.train[node])

    def measured_on(self, node: NodeId) -> Examples:
        """A copy of the rows that a node holds out."""
        return self._take(self.held_out[node])

    def data(self, node: NodeId) -> Data:
        """What a node holds, as it would have loaded it."""
        rows, missing = (self.examples(node), self.measured_on(node)), self.missing.get(node, {})
        return Data(self.name, self.schema, *rows, missing, filled=self.filled)

    def alone(self, node: NodeId) -> "Federation":
        """One node without the others, which measures models on what all of them hold out."""
        return self._of_one(node, self.train[node])

    def pooled(self) -> "Federation":
        """All rows on one node: what nobody has without moving data."""
        return self._of_one("everyone", np.concatenate([*self.train.values()]))

    def _of_one(self, name: NodeId, train: Rowset) -> "Federation":
        held_out = np.concatenate([*self.held_out.values()])
        return replace(self, train={name: train}, held_out={name: held_out}, missing={}, division=None)

    def describe(self) -> Told:
        """What the nodes would tell of their data if their owners had no policy of their own."""
        least = Policy().min_rows
        few = {node: f"holds fewer than {least} rows" for node in self.train if len(self.train[node]) < least}
        parts = {
            node: statistics_of(self.examples(node), self.missing.get(node, {}), self.schema, least, filled=self.filled)
            for node in self.train
            if node not in few
        }
        return Told(self.name, self.schema, dict.fromkeys(parts, least), parts, few)

    def normalized(self) -> "Federation":
        """The same rows, scaled by mean and deviation of all that the nodes train on; raises BadSpec if unknown."""
        schema = with_normalization(self.schema, self.describe())
        return replace(self, schema=schema, rows=normalized(self.rows, schema))

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


def _check_rows(node: NodeId, data: Data) -> None:
    """Raise UserError naming node and column for rows that no data source would have let through."""
    if len(data.train) == 0:
        raise UserError(f"{node} has no examples to train on")
    for kind, rows in (("training", data.train), ("held-out", data.held_out)):
        for what, array in (("x", rows.x), ("y", rows.y)):
            if not np.isfinite(array).all():
                row, *place = np.argwhere(~np.isfinite(array))[0].tolist()
                names = data.schema.features
                column = repr(names[place[0]]) if what == "x" and len(place) == 1 and names else f"{what}{place}"
                raise UserError(f"{node}: {kind} row {row}, column {column} is {array[(row, *place)]}: mend or drop it")


def _carving(given: Carving, partition: str, seed: int, held_out: float) -> Carving:
    if (given.partition, given.held_out, given.seed) != (Carving().partition, Carving().held_out, Carving().seed):
        raise UserError("give partition, held_out and seed to the simulation, not to the data source")
    return replace(given, partition=partition.replace(",", ";"), held_out=held_out, seed=seed)
