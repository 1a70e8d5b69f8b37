"""Who contributed what to a round, and what it earns: a rule in whole numbers that anybody can compute again.

1. An update that is empty, or repeats one of an earlier round, earns nothing, and is told so.
2. Each other score is the update's gain in validation loss (harm counts 0; updates that are alike share one), as
   parts of 10^9 of the round's total; in an audited round, the mean of that and of the audit's.
3. A node's standing is the mean of its last standing and the new score: one lucky round does not pay for many.
4. A tenth of the round's pool goes to all sound updates alike, the rest by standing. Nobody gets more than half of a
   pool (or than an equal share, of three nodes or fewer). What is left over stays in the pool.
5. The records, in this order, are the leaves of a Merkle tree; its root stands in the ledger beside the payments.
6. Which rounds are audited is drawn by a secret. Its hash is recorded before the first round, and it is told after the
   last: nobody can foresee an audit, and everybody can find out afterwards that none was left out or added.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from tutti.core import merkle
from tutti.core.errors import UserError
from tutti.domain.ledger import AnyOperation, Distribute
from tutti.domain.signing import Signed, Verify, address_of, digest_of

WHOLE = 10**9
"""Parts into which a round's scores are divided."""

FLOOR_DIVISOR = 10
AUDIT_DIVISOR = 5
"""One round in so many is audited."""


class BadProof(UserError):
    """A proof or a list of records that does not lead to the root in the ledger."""


class Contribution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node's part in one round. Scores are parts of 10^9; `fault` says why an update earns nothing.

    `gain`, `audit`: the update's share of the round's gain as measured; `standing`: after this round. `signed`: the
    node's own signature under its update, if it has a key.
    """

    job: str
    round: int
    node: str
    digest: str
    weight: int
    gain: int = 0
    audit: int | None = None
    before: int | None = None
    standing: int = 0
    fault: str = ""
    payment: int = 0
    signed: Signed | None = None


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That a contribution is among those of a round: the Merkle path, in hex, and the root that it leads to."""

    contribution: Contribution
    path: list[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]]
    root: str


def account_of(node: str) -> str:
    """The ledger's name for a node's account."""
    return f"node:{node}"


def escrow_of(job: str) -> str:
    """The ledger's name for the pool of a job."""
    return f"job:{job}"


def payment_key(job: str, round: int) -> str:
    """The ledger's key of a round's payment."""
    return f"reward/{job}/{round}"


def commitment_to(secret: bytes) -> str:
    """What is said beforehand of the secret that draws a job's audits."""
    return sha256(b"tutti audits 1\n" + secret).hexdigest()


def is_audited(secret: bytes, round: int) -> bool:
    """Whether a round is audited; nobody can know before the secret is told, everybody after."""
    drawn = hmac.digest(secret, f"audit/{round}".encode(), "sha256")
    return int.from_bytes(drawn[:8], "big") % AUDIT_DIVISOR == 0


def portions(gains: Sequence[float]) -> list[int]:
    """Gains as parts of 10^9 of their sum, rounded down; harm counts as nothing, and so does what is no number."""
    useful = [max(0.0, gain) if isfinite(gain) else 0.0 for gain in gains]
    total = sum(useful)
    return [int(WHOLE * (gain / total)) for gain in useful] if total > 0 else [0] * len(useful)


def settle(measured: Sequence[Contribution], standings: Mapping[str, int], pool: int) -> list[Contribution]:
    """The contributions with standings and payments filled in; `standings` are those before the round, by node."""
    after = []
    for one in measured:
        score = 0 if one.fault else one.gain if one.audit is None else (one.gain + one.audit) // 2
        before = standings.get(one.node)
        standing = score if before is None else (before + score) // 2
        after.append(msgspec.structs.replace(one, before=before, standing=standing))
    payments = payments_of(after, pool)
    return [msgspec.structs.replace(one, payment=paid) for one, paid in zip(after, payments, strict=True)]


def payments_of(contributions: Sequence[Contribution], pool: int) -> list[int]:
    """What each earns of the round's pool; their sum is at most the pool."""
    sound = [one for one in contributions if not one.fault]
    if not sound:
        return [0] * len(contributions)
    floor = pool // FLOOR_DIVISOR
    total = sum(one.standing for one in sound)
    most = max(pool // 2, pool // len(sound))

    def earned(one: Contribution) -> int:
        by_standing = (pool - floor) * one.standing // total if total else 0
        return min(most, floor // len(sound) + by_standing)

    return [0 if one.fault else earned(one) for one in contributions]


_encoder = msgspec.json.Encoder(order="deterministic")


def record_of(contribution: Contribution) -> bytes:
    """What is hashed of a contribution: its JSON with sorted keys and no spaces, without `signed` if it is not."""
    fields = msgspec.structs.asdict(contribution)
    return _encoder.encode({name: value for name, value in fields.items() if name != "signed" or value is not None})


def leaves(contributions: Sequence[Contribution]) -> list[bytes]:
    """The Merkle leaf of each."""
    return [merkle.leaf(record_of(one)) for one in contributions]


def root_of(contributions: Sequence[Contribution]) -> str:
    return merkle.root(leaves(contributions)).hex()


def prove(contributions: Sequence[Contribution], node: str) -> Proof:
    """The proof for a node's contribution; raises UserError if it has none."""
    index = next((i for i, one in enumerate(contributions) if one.node == node), None)
    if index is None:
        raise BadProof(f"node {node!r} has no update that counted in this round")
    found = leaves(contributions)
    path = [step.hex() for step in merkle.proof(found, index)]
    return Proof(contribution=contributions[index], path=path, root=merkle.root(found).hex())


def check_proof(proof: Proof) -> None:
    """Raises BadProof if the path does not lead from the contribution to the root."""
    steps = [bytes.fromhex(step) for step in proof.path]
    if merkle.follow(leaves([proof.contribution])[0], steps).hex() != proof.root:
        raise BadProof("the proof does not lead to its root: it, or the contribution in it, was changed")


def check_signature(one: Contribution, verify: Verify) -> str:
    """The key that has signed a contribution's update, empty if none has; raises BadProof if the signature is bad."""
    its = one.signed
    if its is None:
        return ""
    if not verify(its.key, digest_of(one.job, one.digest, its), bytes.fromhex(its.signature)):
        raise BadProof(
            f"the update {one.digest[:12]} of {one.node} in round {one.round} of {one.job} is not signed by the key "
            "that its record names"
        )
    return its.key


def check_signers(
    contributions: Iterable[Contribution], verify: Verify, known: Mapping[str, str]
) -> dict[str, tuple[int, str]]:
    """By node, how many updates it has, and the address of the key that has signed them (empty: it has none).

    Raises BadProof for a bad signature, for a node with two keys, and for one whose key is not the one that is `known`.
    """
    found: dict[str, tuple[int, str]] = {}
    for one in contributions:
        address = address_of(check_signature(one, verify))
        count, before = found.get(one.node, (0, address))
        if address != before or address != known.get(one.node, address):
            raise BadProof(
                f"{one.node} signs as {known.get(one.node, before) or 'nobody'}, and its update in round {one.round} "
                f"of {one.job} is signed by {address or 'nobody'}"
            )
        found[one.node] = count + 1, address
    return found


def check_heard(known: Iterable[str], signed: Iterable[str]) -> None:
    """Raises BadProof unless there are updates of every node whose key is `known`: none is no proof of anything."""
    heard = sorted(signed)
    for node in known:
        if node not in heard:
            raise BadProof(
                f"no update of {node} is among those that were checked, which are of {', '.join(heard) or 'nobody'}"
            )


def check_round(contributions: Sequence[Contribution], pool: int) -> None:
    """Raises BadProof unless standings and payments follow from the scores by the rule above."""
    befores = {one.node: one.before for one in contributions if one.before is not None}
    if settle(contributions, befores, pool) != list(contributions):
        raise BadProof("the standings or payments do not follow from the scores by the published rule")


def check_history(job: str, rounds: Mapping[int, Sequence[Contribution]]) -> None:
    """Raises BadProof unless each standing of a job's rounds goes on from the one that its node had before."""
    standings: dict[str, int] = {}
    for number in sorted(rounds):
        for one in rounds[number]:
            if one.before != standings.get(one.node):
                raise BadProof(
                    f"round {number} of {job} says that {one.node} stood at {one.before}, and after the rounds before "
                    f"it stood at {standings.get(one.node)}: a round was changed, or left out"
                )
        standings |= {one.node: one.standing for one in rounds[number]}


def check_audits(job: str, commitment: str, secret: str, rounds: Mapping[int, Sequence[Contribution]]) -> None:
    """Raises BadProof unless the secret is the one that was committed to, and just the rounds it draws are audited.

    A round that could not be measured, in which nobody has a share, may go without.
    """
    try:
        told = bytes.fromhex(secret)
    except ValueError:
        raise BadProof(f"the secret that drew the audits of {job} should be hex digits, came {secret[:80]!r}") from None
    if commitment_to(told) != commitment:
        raise BadProof(f"the secret that drew the audits of {job} is not the one that was committed to")
    for number, contributions in rounds.items():
        drawn = is_audited(told, number)
        audited = any(one.audit is not None for one in contributions)
        if audited and not drawn:
            raise BadProof(f"round {number} of {job} was audited, and it was not drawn")
        if drawn and not audited and any(one.gain for one in contributions):
            raise BadProof(f"round {number} of {job} was drawn, and it was not audited")


class Booked(Protocol):
    """What moved tokens, under which key: an entry of a ledger, or a transaction of a chain."""

    @property
    def seq(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def operation(self) -> AnyOperation | None: ...


def check_paid(contributions: Sequence[Contribution], pool: int, entries: Iterable[Booked]) -> bool:
    """Whether a ledger pays these contributions of one round; raises BadProof if it pays something else for it."""
    check_round(contributions, pool)
    key = payment_key(contributions[0].job, contributions[0].round) if contributions else ""
    paid = next((entry.operation for entry in entries if entry.key == key), None)
    if paid is None:
        return False
    owed = {account_of(one.node): one.payment for one in contributions if one.payment}
    if not isinstance(paid, Distribute) or paid.evidence != root_of(contributions) or paid.payments != owed:
        raise BadProof(f"the ledger pays something else under {key!r} than these contributions earned")
    return True


def entry_of(proof: Proof, entries: Iterable[Booked]) -> Booked:
    """The entry that pays the round of a proof; raises BadProof if none has the proof's root, or pays otherwise."""
    one = proof.contribution
    for entry in entries:
        if entry.key == payment_key(one.job, one.round) and isinstance(entry.operation, Distribute):
            if entry.operation.evidence != proof.root:
                raise BadProof(f"entry {entry.seq} pays the round for other contributions: its root is another")
            if entry.operation.payments.get(account_of(one.node), 0) != one.payment:
                raise BadProof(f"entry {entry.seq} does not pay {one.node} the {one.payment} that it earned")
            return entry
    raise BadProof(f"the ledger does not pay for round {one.round} of {one.job} (yet)")


def why(one: Contribution, pool: int, sound: int) -> str:
    """Why a node earned what it did, in a sentence or two."""
    if one.fault:
        return f"{one.node} earned nothing in round {one.round}: {one.fault}"
    audited = "" if one.audit is None else f", and {one.audit / WHOLE:.1%} by the audit"
    kept = "its first round" if one.before is None else f"before it stood at {one.before / WHOLE:.1%}"
    return (
        f"{one.node} earned {one.payment} of {pool} in round {one.round}: its update made {one.gain / WHOLE:.1%} of "
        f"the round's gain{audited} ({kept}, now {one.standing / WHOLE:.1%}); "
        f"{pool // FLOOR_DIVISOR // sound} of it are the equal share of {sound} sound updates"
    )
