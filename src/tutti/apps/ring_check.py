"""`tutti ring verify`: what a member has agreed on, checked from its chain alone, trusting no leader."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from tutti.adapters.chains.sqlite import SqliteChain
from tutti.adapters.identities.secp256k1 import verify
from tutti.adapters.logs.chain import events_of
from tutti.core.errors import NotFound
from tutti.domain import events as e
from tutti.domain import jobs, signers
from tutti.domain.contributions import BadProof, check_heard
from tutti.domain.jobs import Job
from tutti.domain.signers import Keys
from tutti.domain.signing import Verify, address_of
from tutti.ring.record import Record, begins, follows
from tutti.services.chain import BadRecord


class Signer(msgspec.Struct, frozen=True):
    """So many updates of a node that one key has signed, that of this address, the first in the record `since`."""

    node: str
    address: str
    since: int
    updates: int = 0


class Checked(msgspec.Struct, frozen=True):
    """A chain that holds: how many records it has, the digest of the newest, and who has signed which updates."""

    records: int
    head: str
    signers: list[Signer]


def read(state_dir: Path) -> list[Record]:
    """The chain of a member, which may be running; raises NotFound, StorageError."""
    file = state_dir / "chain.sqlite"
    if not file.is_file():
        raise NotFound(f"there is no chain in {state_dir}: expected the --state-dir of a member of a ring")
    store = SqliteChain(file)
    try:
        return store.load()[0]
    finally:
        store.close()


def check(
    records: Sequence[Record], known: Mapping[str, str], head: str | None = None, verify: Verify = verify
) -> Checked:
    """Raises BadProof unless each record follows from the one before, and each update is signed by its node's key.

    `known`: addresses as which nodes sign, who must have signed something; `head`: a record that must be there.
    """
    if not records or not begins(records[0]):
        raise BadProof("there are no records, or the first is not one with which a ring begins")
    for before, record in pairwise(records):
        if not follows(before, record, records[0].digest):
            raise BadProof(f"record {record.height} does not follow from the one before it")
    if head is not None and all(record.digest != head for record in records):
        raise BadProof(f"there is no record {head[:12]} in this chain: it is another, or was cut off before it")
    found = _signers(records, verify)
    heard = [each for each in found if each.updates]
    for each in heard:
        if each.address != known.get(each.node, each.address):
            raise BadProof(
                f"{each.node} signs as {known[each.node]}, and from record {each.since} on as {each.address}"
            )
    check_heard(known, {each.node for each in heard})
    return Checked(len(records), records[-1].digest, found)


def _signers(records: Sequence[Record], verify: Verify) -> list[Signer]:
    """Raises BadProof."""
    known: dict[str, Job] = {}
    keys: Keys = {}
    found: dict[tuple[str, str], Signer] = {}
    for record in records:
        try:
            for stream, event in events_of(record):
                if fault := signers.key_fault(keys, event):
                    raise BadProof(f"record {record.height} of {record.leader}: {fault}")
                keys = signers.after(keys, event)
                if isinstance(event, e.NodeKeyed):
                    its = Signer(event.node, address_of(event.key), record.height)
                    found.setdefault((its.node, its.address), its)
                if isinstance(event, e.JobSubmitted):
                    known[event.job] = jobs.begin(event)
                elif stream.startswith("job:"):
                    job = known[stream.removeprefix("job:")]
                    if fault := signers.update_fault(keys, job, event, verify):
                        raise BadProof(f"record {record.height} of {record.leader}: {fault}")
                    if isinstance(event, e.UpdateAccepted) and event.signed is not None:
                        at = event.node, address_of(event.signed.key)
                        found[at] = msgspec.structs.replace(found[at], updates=found[at].updates + 1)
                    known[job.id] = jobs.evolve(job, event)  # type: ignore[arg-type]  # of a job's stream
        except (KeyError, AssertionError, BadRecord) as error:  # there is no such job, node or round
            raise BadProof(f"record {record.height} of {record.leader}: {type(error).__name__}: {error}") from None
    return list(found.values())
