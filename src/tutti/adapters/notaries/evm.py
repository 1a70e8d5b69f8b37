"""The notary on an Ethereum chain: TrainingRegistry and ContributionTracker, two transactions a job and one a round."""

from dataclasses import dataclass

from eth_keys.datatypes import Signature

from tutti.adapters.chain.connection import Chain
from tutti.adapters.chain.sender import Call, Reverted
from tutti.core.errors import Conflict, NotFound
from tutti.domain.contributions import Proof, record_of
from tutti.domain.events import NodeEquivocated
from tutti.domain.signing import Signed, address_of, session_of

NONE = "00" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as it stands on the chain. Times in seconds since the epoch; None until it is closed."""

    coordinator: str
    opened_at: int
    closed_at: int | None
    rounds: int
    spec: str
    data: str
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRound:
    root: str
    model: str
    count: int
    at: int


class EvmNotary:
    """A Notary over a Chain, and what can be read there again."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    async def open_session(self, job: str, spec: str, data: str, rounds: int) -> None:
        await self._send(f"session/{job}", "SessionExists", "registry", "open", job, _hash(spec), _hash(data), rounds)

    async def record_round(self, job: str, round: int, root: str, count: int, model: str) -> None:
        arguments = (round, _hash(root), count, _hash(model))
        await self._send(f"round/{job}/{round}", "AlreadyRecorded", "tracker", "record", job, *arguments)

    async def close_session(self, job: str, model: str | None) -> None:
        await self._send(f"close/{job}", "SessionOver", "registry", "close", job, _hash(model or NONE))

    async def accuse(self, proof: NodeEquivocated) -> None:
        """Anybody could send this. A signature does not say which of two keys it recovers to: both are tried."""
        updates = [
            (session_of(proof.job), its.round, _hash(its.base), _hash(digest), its.samples, its.nonce)
            for digest, its in zip(proof.digests, proof.signed, strict=True)
        ]
        ends = [await self._end(update, its) for update, its in zip(updates, proof.signed, strict=True)]
        signatures = [_hash(its.signature) + end for its, end in zip(proof.signed, ends, strict=True)]
        given = [part for pair in zip(updates, signatures, strict=True) for part in pair]
        key = f"equivocation/{proof.job}/{proof.signed[0].round}/{proof.digests[1][:16]}"
        for name, staker in (await self._answerable(proof)).items():
            await self._transact(key + name, "AlreadyProven", "tracker", "proveEquivocation", *given, staker)

    async def _answerable(self, proof: NodeEquivocated) -> dict[str, str]:
        """Whose stake the proof takes: that of the signing address, and of the wallet that we keep for the node.

        The wallet vouches for the key first: on the market, it is there that a node's stake lies.
        """
        signer, account = address_of(proof.signed[0].key), f"node:{proof.node}"
        wallet = self.chain.wallets.address(account)
        (staked, unbonding, *_), vouched = await self.chain.views(
            ("staking", "positions", wallet), ("tracker", "vouched", wallet, signer)
        )
        if staked + unbonding == 0:
            return {"": signer}

        async def vouch() -> Call:
            return self.chain.call(self.chain.wallets.account(account), "tracker", "vouch", signer)

        if not vouched:
            await self.chain.send(f"notary/vouch/{proof.node}/{signer}", (await vouch()).data, vouch)
        return {"": signer, "/wallet": wallet}

    async def _end(self, update: tuple[object, ...], its: Signed) -> bytes:
        digest = await self.chain.view("tracker", "digest", update)
        for v in (27, 28):
            signature = Signature(vrs=(v - 27, int(its.signature[:64], 16), int(its.signature[64:], 16)))
            if signature.recover_public_key_from_msg_hash(digest).to_bytes().hex() == its.key:
                return bytes([v])
        raise Conflict(f"the signature of {address_of(its.key)} is none, so it proves nothing")

    async def _send(self, key: str, done: str, name: str, function: str, job: str, *arguments: object) -> None:
        await self._transact(key, done, name, function, session_of(job), *arguments)

    async def _transact(self, key: str, done: str, name: str, function: str, *arguments: object) -> None:
        """`done`: how the contract says that this has happened, should our journal have been lost."""

        async def make() -> Call:
            return self.chain.call(self.chain.operator, name, function, *arguments)

        try:
            await self.chain.send(f"notary/{key}", (await make()).data, make)
        except Reverted as refusal:
            if refusal.revert is None or refusal.revert.name != done:
                raise

    async def count(self) -> int:
        """How many sessions the registry knows, whoever opened them."""
        found: int = await self.chain.view("registry", "count")
        return found

    async def session(self, job: str) -> Session:
        """Raises NotFound."""
        coordinator = str(self.chain.operator.address)
        found = await self.chain.view("registry", "sessions", coordinator, session_of(job))
        opened_at, rounds, closed_at, spec, data, model = found
        if opened_at == 0:
            raise NotFound(f"the chain has no session of job {job!r} (yet)")
        return Session(
            coordinator=coordinator,
            opened_at=opened_at,
            closed_at=closed_at or None,
            rounds=rounds,
            spec=spec.hex(),
            data=data.hex(),
            model=model.hex() if any(model) else None,
        )

    async def round(self, job: str, round: int) -> RecordedRound:
        """Raises NotFound."""
        root, model, count, at = await self.chain.view(
            "tracker", "rounds", self.chain.operator.address, session_of(job), round
        )
        if not any(root):
            raise NotFound(f"the chain has no round {round} of job {job!r} (yet)")
        return RecordedRound(root=root.hex(), model=model.hex(), count=count, at=at)

    async def holds(self, proof: Proof) -> bool:
        """Whether the contract finds a contribution among those of its round."""
        one = proof.contribution
        path = [bytes.fromhex(step) for step in proof.path]
        question = (self.chain.operator.address, session_of(one.job), one.round, record_of(one), path)
        found: bool = await self.chain.view("tracker", "verify", *question)
        return found


def _hash(text: str) -> bytes:
    return bytes.fromhex(text)
