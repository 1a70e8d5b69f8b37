"""What can be done with tokens. Amounts are whole units, 1 to 2^53: no fractions, nothing negative."""

from hashlib import sha256
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tutti.core.errors import UserError

LARGEST = 2**53
"""The most units there can ever be: every JSON reader can hold the number exactly."""

Amount = Annotated[int, Meta(ge=1, le=LARGEST)]
AccountName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,99}$(?!\n)")]
EscrowId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,99}$(?!\n)")]
Key = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,200}$(?!\n)")]

PEOPLES_KEY = r"^[\x21-\x2e\x30-\x7e]{1,160}$"
"""Keys that people may choose: without a slash, for each person has a name space of its own (`key_of`)."""

PeoplesKey = Annotated[str, Meta(pattern=PEOPLES_KEY + r"(?!\n)")]
Hex = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]


UNBONDING = 7 * 86_400
"""Seconds for which unstaked tokens can still be slashed, unless a ledger is founded otherwise."""


def key_of(person: str, chosen: str) -> str:
    """The key of a person's order: nobody can take another's, nor one of the coordinator's own.

    A stranger who took the key of a payment to come would keep it from ever being made.
    """
    return f"by/{sha256(person.encode()).hexdigest()[:16]}/{chosen}"


def as_chosen(key: str) -> str:
    """A key as its person knows it."""
    return key.split("/", 2)[2] if key.startswith("by/") else key


class BadOperation(UserError):
    """An operation that can never be carried out: a fractional or negative amount, a name that is none."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True, tag_field="type"):
    pass


class Found(Operation, frozen=True, kw_only=True):
    """The ledger begins; its rules never change. `unbonding`: seconds for which unstaked tokens can still be slashed.

    `cap` is the most that may ever be minted, `public_key` (Ed25519) that with which every entry is signed.
    """

    public_key: Hex
    unbonding: Annotated[int, Meta(ge=0)] = 0
    cap: Amount = LARGEST


class Mint(Operation, frozen=True, kw_only=True):
    """New tokens; the only source there is."""

    to: AccountName
    amount: Amount


class Transfer(Operation, frozen=True, kw_only=True):
    source: AccountName
    to: AccountName
    amount: Amount


class Stake(Operation, frozen=True, kw_only=True):
    """Put tokens at risk."""

    account: AccountName
    amount: Amount


class Unstake(Operation, frozen=True, kw_only=True):
    """Begin to take stake back. All that unbonds can be withdrawn once the period since the last Unstake is over."""

    account: AccountName
    amount: Amount


class Withdraw(Operation, frozen=True, kw_only=True):
    """Take what has unbonded."""

    account: AccountName


class Escrow(Operation, frozen=True, kw_only=True):
    """Set tokens aside: for one worker's result (`job`), or for the contributions to a training (`pool`)."""

    escrow: EscrowId
    payer: AccountName
    amount: Amount
    purpose: Literal["job", "pool"] = "job"


class Bond(Operation, frozen=True, kw_only=True):
    """Take a job: so much of the stake of `account` is bound to its escrow, and cannot be unstaked."""

    escrow: EscrowId
    account: AccountName
    amount: Amount


class Release(Operation, frozen=True, kw_only=True):
    """Whoever had taken a job has it no more, without fault: the bond is free, and the escrow open to another."""

    escrow: EscrowId


class Penalise(Operation, frozen=True, kw_only=True):
    """A wrong result costs its bond: `compensation`, at most half of it and at most the escrow, to its payer;
    the rest is burned."""

    escrow: EscrowId
    reason: str
    compensation: Annotated[int, Meta(ge=0, le=LARGEST)] = 0


class Reward(Operation, frozen=True, kw_only=True):
    """A job is done: everything in its escrow goes to `to`, once; that is who took it, if somebody did."""

    escrow: EscrowId
    to: AccountName


class Distribute(Operation, frozen=True, kw_only=True):
    """A round's payments out of a pool. They are owed until claimed; `evidence` is the root of its records."""

    escrow: EscrowId
    payments: dict[AccountName, Amount]
    evidence: Hex = ""


class Claim(Operation, frozen=True, kw_only=True):
    """Take everything that is owed."""

    account: AccountName


class Refund(Operation, frozen=True, kw_only=True):
    """What is left in an escrow goes back to whoever paid it in; the escrow ends."""

    escrow: EscrowId


AnyOperation: TypeAlias = (
    Found
    | Mint
    | Transfer
    | Stake
    | Unstake
    | Withdraw
    | Escrow
    | Bond
    | Release
    | Penalise
    | Reward
    | Distribute
    | Claim
    | Refund
)


def accounts_of(operation: AnyOperation) -> list[str]:
    """The accounts that an operation names."""
    match operation:
        case Mint(to=to) | Reward(to=to):
            return [to]
        case Transfer(source=source, to=to):
            return [source, to]
        case Stake(account=name) | Unstake(account=name) | Withdraw(account=name) | Claim(account=name):
            return [name]
        case Bond(account=name):
            return [name]
        case Escrow(payer=payer):
            return [payer]
        case Distribute(payments=payments):
            return [*payments]
        case Found() | Release() | Penalise() | Refund():
            return []


class Order(msgspec.Struct, frozen=True):
    """An operation with its idempotency key: told twice, it is carried out once."""

    key: Key
    operation: AnyOperation


def check(order: Order) -> Order:
    """The order, if its amounts and names are what they should be; raises BadOperation naming the field."""
    try:
        return msgspec.convert(msgspec.to_builtins(order), Order)
    except (msgspec.ValidationError, TypeError) as error:
        raise BadOperation(f"{type(order.operation).__name__}: {error}; amounts are whole units, 1 or more") from None
