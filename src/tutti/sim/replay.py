"""Simulations as manifests, and runs of any kind made again from theirs."""

from collections.abc import Mapping

from tutti.domain.events import NodeId
from tutti.ports.training import Data
from tutti.services.manifest import BadManifest, Holding, Manifest, threads, versions
from tutti.sim.federation import Federation
from tutti.sim.history import History
from tutti.sim.simulation import simulate


def manifest_of(history: History, federation: Federation) -> Manifest:
    """What a simulation was made of."""
    header = history.header
    parts = {node: federation.data(node) for node in federation.nodes}
    return Manifest(
        run=header.spec.name,
        kind="simulation",
        spec=header.spec,
        data=federation.schema,
        engine=header.engine,
        batch_size=header.batch_size,
        threads=threads(),
        nodes={
            node: Holding(digest=data.digest(), examples=len(data.train), held_out=len(data.held_out))
            for node, data in parts.items()
        },
        division=federation.division,
        versions=versions(),
        status=header.status,
        outcome=header.outcome,
        rounds=history.rounds[-1].round,
        model=header.model,
    )


def replay(manifest: Manifest, given: Mapping[NodeId, Data]) -> History:
    """Make a run again, as a simulation on the same data.

    `given` are the data of nodes that the manifest has no source for, or that shall not be loaded from there; a run
    that divided one source is divided again. Raises BadManifest, naming the node or the incident, where it cannot be.
    """
    if manifest.incidents:
        raise BadManifest(f"{manifest.run} cannot be made again: {'; '.join(manifest.incidents)}")
    if manifest.rounds == 0 or not manifest.batch_size:
        lacking = "it has no trained model" if manifest.rounds == 0 else "its nodes chose batches of different sizes"
        raise BadManifest(f"{manifest.run} cannot be made again: {lacking}")
    federation = _federation(manifest, given)
    for node, holding in manifest.nodes.items():
        if (came := federation.data(node).digest()) != holding.digest:
            raise BadManifest(f"{node} holds other rows now: expected digest {holding.digest[:12]}, came {came[:12]}")
    return simulate(manifest.spec, federation, engine=manifest.engine, batch_size=manifest.batch_size)


def _federation(manifest: Manifest, given: Mapping[NodeId, Data]) -> Federation:
    if (division := manifest.division) is not None:
        return Federation.divide(
            division.source,
            division.nodes,
            division.partition,
            seed=division.seed,
            held_out=division.held_out,
        )
    if missing := sorted(manifest.nodes.keys() - given.keys()):
        raise BadManifest(
            f"{manifest.run} cannot be made again here: the rows of {', '.join(missing)} never left them; whoever has "
            f"them can name them with --data {missing[0]}=SOURCE"
        )
    return Federation.of({node: given[node] for node in sorted(manifest.nodes)})
