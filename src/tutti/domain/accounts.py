"""Accounts: who may use the coordinator, in which role, and what is kept of them. Values and rules, no I/O.

People belong to an organisation and have a role in it; jobs and nodes belong to the coordinator. The
organisation that runs the coordinator (its first) also looks after the accounts of the others.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tutti.core.errors import Conflict, Forbidden, UserError
from tutti.domain.quotas import Quota

Role: TypeAlias = Literal["", "viewer", "operator", "admin"]
"""What an account may do: look, steer jobs and nodes, look after accounts. Empty: nothing until an admin says so."""

ROLES: tuple[Role, ...] = ("", "viewer", "operator", "admin")

# `$` alone also matches before a newline at the end; `(?!\n)` rules that out, and `\Z` is unknown to OpenAPI's readers.
AccountName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$(?!\n)")]
OrganisationName = Annotated[str, Meta(pattern=r"^\S(.{0,62}\S)?$(?!\n)")]
Label = Annotated[str, Meta(min_length=1, max_length=64)]

SESSION_SECONDS = 12 * 3600.0
"""How long a session lasts unless it is refreshed."""

LONGEST_SESSION = 30 * 86_400.0
"""How long it can be refreshed."""

ROTATION_GRACE = 60.0
"""How long the token before the last refresh still works, for the requests that were under way."""

SESSIONS_EACH, TOKENS_EACH, WAITING_AT_MOST = 20, 50, 100
SHORTEST_PASSWORD, LONGEST_PASSWORD = 8, 1024


class BadPassword(UserError):
    """The password is too short, too long or too easy."""


class Organisation(Quota, frozen=True, kw_only=True, tag=True):
    """With its quota. `host`: it runs the coordinator."""

    name: str
    created_at: float
    host: bool = False


class Account(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`password` is the hash."""

    name: str
    organisation: str
    role: Role
    password: str
    created_at: float
    disabled: bool = False


class Session(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Somebody signed in from somewhere. `token` and `previous` are hashes; a refresh makes a new token.

    All tokens of a session begin with its `id`, so that one which is long replaced still tells whose it was.
    """

    id: str
    account: str
    token: str
    created_at: float
    expires_at: float
    origin: str
    previous: str = ""
    rotated_at: float = 0.0


class ApiToken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A long-lived token for programs. `role` is the most it allows; the account's own role limits it further."""

    id: str
    account: str
    label: str
    role: Role
    token: str
    created_at: float
    expires_at: float | None = None


Record: TypeAlias = Organisation | Account | Session | ApiToken


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, when and from where. `outcome` is the HTTP status."""

    at: float
    who: str
    organisation: str
    origin: str
    action: str
    target: str
    outcome: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request. `host`: acts for the organisation that runs the coordinator; `session`: its id, if any."""

    name: str
    role: Role
    organisation: str = ""
    host: bool = False
    session: str = ""


def standing(session: Session, hashed: str, now: float) -> Literal["current", "replaced", "stale"]:
    """What a token of this session is worth, by its hash: replaced a moment ago, or shown by a thief or the robbed.

    Of the tokens that were replaced only the last has a grace, so whoever refreshes twice gives the other away.
    """
    if hashed == session.token:
        return "current"
    recent = hashed == session.previous and now < session.rotated_at + ROTATION_GRACE
    return "replaced" if recent else "stale"


def allows(role: Role, needed: Role) -> bool:
    return ROLES.index(role) >= ROLES.index(needed)


def lesser(one: Role, other: Role) -> Role:
    """The role that allows less."""
    return min(one, other, key=ROLES.index)


def key_of(record: Record) -> tuple[str, str]:
    """What a record is stored under: its kind, and what tells it from others of its kind."""
    return type(record).__name__, record.name if isinstance(record, Organisation | Account) else record.id


def check_password(name: str, password: str) -> None:
    """Length is what counts (https://pages.nist.gov/800-63-3/sp800-63b.html#memsecret); raises BadPassword."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise BadPassword(
            f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters, this one has {len(password)}"
        )
    if password.lower() in (name.lower(), name.lower().partition("@")[0]) or len(set(password)) < 4:
        raise BadPassword("this password is too easy to guess: choose a longer one that is not your name")


def check_may_manage(by: Identity, organisation: str) -> None:
    """Raises Forbidden unless `by` looks after the accounts of this organisation."""
    if not allows(by.role, "admin"):
        raise Forbidden(f"only an admin may do that, {by.name} is {_called(by.role)}")
    if not by.host and by.organisation != organisation:
        raise Forbidden(f"{by.name} is an admin of {by.organisation!r}, not of {organisation!r}")


def check_someone_is_left(accounts: list[Account], host: str) -> None:
    """The accounts as they would be; raises Conflict if none of them could look after the others."""
    if accounts and not any(a.role == "admin" and not a.disabled and a.organisation == host for a in accounts):
        raise Conflict(f"this would leave {host!r} without an admin: make another account an admin first")


def check_may(identity: Identity, needed: Role) -> None:
    """Raises Forbidden, saying what is missing."""
    if allows(identity.role, needed):
        return
    if not identity.role:
        raise Forbidden(f"an admin has not given {identity.name} a role yet: ask one")
    raise Forbidden(f"this needs the role {needed}, {identity.name} is {_called(identity.role)}: ask an admin")


def _called(role: Role) -> str:
    return {"": "nobody yet", "viewer": "a viewer", "operator": "an operator", "admin": "an admin"}[role]
