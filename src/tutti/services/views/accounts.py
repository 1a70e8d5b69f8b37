"""People and programs that may use the coordinator, and what they did."""

from tutti.domain.accounts import ApiToken, AuditEntry, Role
from tutti.domain.quotas import Quota, Used
from tutti.services.views.base import View


class AccountView(View, frozen=True, kw_only=True):
    """`role` is empty until an admin gives one; `host`: of the organisation that runs the coordinator."""

    name: str
    organisation: str
    role: Role
    host: bool
    disabled: bool
    created_at: float


class OrganisationView(View, frozen=True, kw_only=True):
    """With what it may have, and what it has."""

    name: str
    host: bool
    quota: Quota
    used: Used
    created_at: float


class Grant(View, frozen=True, kw_only=True):
    """A session. Send the access token as `Authorization: Bearer`; empty with a cookie."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105
    expires_in: int
    refresh_token: str
    account: AccountView


class SessionView(View, frozen=True, kw_only=True):
    """Who asks. `authentication`: whether one must sign in; `setup`: whether there are no accounts yet.

    `account` is None for the operator, who has none, and for strangers, whose `role` is empty.
    """

    authentication: bool
    setup: bool
    name: str
    role: Role
    host: bool
    account: AccountView | None


class TokenView(View, frozen=True, kw_only=True):
    id: str
    label: str
    role: Role
    created_at: float
    expires_at: float | None


class IssuedToken(View, frozen=True, kw_only=True):
    """`secret` is what to send as `Authorization: Bearer`; it is shown this once."""

    secret: str
    token: TokenView


class AuditView(View, frozen=True, kw_only=True):
    """Who did what, when and from where; `outcome` is the HTTP status."""

    number: int
    entry: AuditEntry


def token_view(token: ApiToken) -> TokenView:
    return TokenView(
        id=token.id,
        label=token.label,
        role=token.role,
        created_at=token.created_at,
        expires_at=token.expires_at,
    )
