"""What a node signs of its update: typed data by EIP-712, which a contract can check as well as anybody else.

https://eips.ethereum.org/EIPS/eip-712. The signature is by secp256k1, r and s, with s in the lower half. A node counts
`nonce` up when it signs another update for a round that it has signed one for; two updates under one number are
a fault that anybody can prove (`ContributionTracker.proveEquivocation`).
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from tutti.core.keccak import keccak256

PublicKey: TypeAlias = Annotated[str, Meta(pattern=r"^([0-9a-f]{128})?$(?!\n)")]
"""Both coordinates of a point of secp256k1."""

SignatureHex: TypeAlias = Annotated[str, Meta(pattern=r"^([0-9a-f]{128})?$(?!\n)")]
Address: TypeAlias = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}$(?!\n)")]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]

NOWHERE = "0x" + "00" * 20

Verify: TypeAlias = Callable[[str, bytes, bytes], bool]
"""(public key, 32 bytes, signature) -> whether the signature is good."""


class Domain(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a signature holds: a chain and its ContributionTracker; where there is no chain, 0 and nowhere."""

    chain: Count = 0
    contract: Address = NOWHERE


class Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signature under an update, and what was signed beside job and digest.

    `round` and `base` are those that the node trained on, `samples` what it claimed, before any cap.
    """

    key: PublicKey
    round: int
    base: str
    samples: Count
    nonce: Count
    signature: SignatureHex
    domain: Domain = Domain()


_DOMAIN = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_UPDATE = keccak256(
    b"Update(bytes32 session,uint64 round,bytes32 baseModel,bytes32 updateHash,uint64 samples,uint64 nonce)"
)
_NAME, _VERSION = keccak256(b"Tutti"), keccak256(b"1")


def session_of(job: str) -> bytes:
    """The name of a job where 32 bytes have to do, as on a chain."""
    return sha256(f"session/{job}".encode()).digest()


def digest_of(job: str, update: str, its: Signed) -> bytes:
    """The 32 bytes that are signed for an update; its key and signature do not go in."""
    words = (_word(its.round), bytes.fromhex(its.base), bytes.fromhex(update), _word(its.samples), _word(its.nonce))
    return keccak256(b"\x19\x01" + _separator(its.domain) + keccak256(_UPDATE + session_of(job) + b"".join(words)))


def address_of(key: str) -> str:
    """The Ethereum address of a public key, in lower case; empty for none."""
    return "0x" + keccak256(bytes.fromhex(key))[12:].hex() if key else ""


@lru_cache(maxsize=16)
def _separator(domain: Domain) -> bytes:
    contract = bytes(12) + bytes.fromhex(domain.contract[2:])
    return keccak256(_DOMAIN + _NAME + _VERSION + _word(domain.chain) + contract)


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")
