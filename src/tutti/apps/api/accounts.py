"""Accounts: sign up and in, sessions, who has which role, tokens for programs, and the audit log."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, Query, Request
from msgspec import UNSET, Meta, UnsetType
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from tutti.apps.api.auth import TOO_MANY, Buckets, client_of, from_our_page
from tutti.apps.api.identify import ACCESS_SECONDS, Identify
from tutti.apps.api.jobs import Text, page_by_name
from tutti.apps.api.schema import After, Answer, Api, Body, Limit
from tutti.core.errors import Conflict, Unproven
from tutti.domain.accounts import (
    Account,
    AccountName,
    AuditEntry,
    Identity,
    Label,
    Organisation,
    OrganisationName,
    Role,
)
from tutti.domain.quotas import Hours, Quota, Used, Whole
from tutti.services.accounts import Accounts
from tutti.services.views import Page
from tutti.services.views.accounts import (
    AccountView,
    AuditView,
    Grant,
    IssuedToken,
    OrganisationView,
    SessionView,
    TokenView,
    token_view,
)

TAG = "accounts"
EXPORT_BATCH = 1000

Password = Annotated[str, Meta(max_length=4096)]
Token = Annotated[str, Meta(max_length=256)]


class SignUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`username` and `email` are read as `name`. Only an admin may say `role`."""

    name: AccountName
    password: Password
    organisation: OrganisationName | None = None
    role: Role | None = None


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`username` and `email` are read as `name`. `cookie`: for a browser, which then keeps the session itself."""

    name: Annotated[str, Meta(max_length=128)]
    password: Password
    cookie: bool = False


class RefreshToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Empty where a cookie says it."""

    refresh_token: Token = ""


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: Password
    new: Password


class AccountChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    role: Role | None = None
    disabled: bool | None = None
    password: Password | None = None


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`days`: how long it is good for; for ever if left out."""

    label: Label
    role: Literal["viewer", "operator", "admin"] = "viewer"
    days: Annotated[float, Meta(gt=0, le=3660)] | None = None


class QuotaChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an organisation may have from now on; null: any amount. What is left out stays as it is."""

    jobs: Whole | UnsetType | None = UNSET
    nodes: Whole | UnsetType | None = UNSET
    node_hours: Hours | UnsetType | None = UNSET
    stored: Whole | UnsetType | None = UNSET


def read_named(type: Any) -> Any:
    """Other systems call the name `username` or `email`, and spell `organization`."""

    def read(plain: Mapping[str, Any]) -> Any:
        other = {"username": "name", "email": "name", "organization": "organisation"}
        return msgspec.convert({other.get(name, name): value for name, value in plain.items()}, type)

    return read


class AccountRoutes:
    def __init__(
        self, accounts: Accounts, identify: Identify, failures: Buckets, used: Callable[[Callable[[str], bool]], Used]
    ) -> None:
        """`used`: what some people have, in the terms of a quota."""
        self._accounts, self._identify, self._failures, self._used = accounts, identify, failures, used
        self._guesses = Buckets(burst=5.0, rate=1 / 30)

    # -- sessions ------------------------------------------------------------------------------------------

    async def show_session(self, request: Request) -> Answer[SessionView]:
        """Who is asking, and whether they must sign in."""
        identity: Identity | None = request.state.identity
        has_account = identity is not None and bool(identity.organisation)
        return Answer(
            SessionView(
                authentication=self._identify.needed,
                setup=not self._accounts.exist,
                name=identity.name if identity else "",
                role=identity.role if identity else "",
                host=identity.host if identity else False,
                account=self._view(self._accounts.account(identity.name)) if identity and has_account else None,
            )
        )

    async def sign_up(
        self, request: Request, wish: Annotated[SignUp, Depends(Body(SignUp, read_named(SignUp)))]
    ) -> Answer[AccountView]:
        """Make an account. The first is the admin's, made by whoever operates the coordinator; who signs up later
        can sign in, and gets a role from an admin.
        """
        by: Identity | None = request.state.identity
        if by is None:
            self._spend(self._failures, client_of(request))
        account = await self._accounts.sign_up(
            by, wish.name, wish.password, organisation=wish.organisation or "", role=wish.role
        )
        if by is None:  # else the guard notes who did it
            await self._accounts.note(account.name, "sign up", account.name, 201, client_of(request))
        return Answer(self._view(account), 201, {"location": f"/api/v1/accounts/{account.name}"})

    async def sign_in(
        self, request: Request, wish: Annotated[SignIn, Depends(Body(SignIn, read_named(SignIn)))]
    ) -> Answer[Grant]:
        """Begin a session. Too many wrong passwords, and the address has to wait."""
        client, guess = client_of(request), f"{client_of(request)} {wish.name.lower()}"
        if not (self._failures.allows(client) and self._guesses.allows(guess)):
            raise HTTPException(429, TOO_MANY, {"retry-after": "30"})
        try:
            session, token = await self._accounts.sign_in(wish.name, wish.password, client)
        except Unproven:
            self._failures.count(client)
            self._guesses.count(guess)
            raise
        return self._grant(request, session.id, session.account, token, cookie=wish.cookie)

    async def refresh(
        self, request: Request, wish: Annotated[RefreshToken, Depends(Body(RefreshToken))]
    ) -> Answer[Grant]:
        """Go on with a session; the refresh token, or the cookie, is replaced by a new one."""
        cookie = "" if wish.refresh_token else self._cookie(request)
        try:
            session, token = await self._accounts.refresh(wish.refresh_token or cookie, client_of(request))
        except Unproven:
            self._spend(self._failures, client_of(request))
            raise
        return self._grant(request, session.id, session.account, token, cookie=bool(cookie))

    async def revoke(self, request: Request, wish: Annotated[RefreshToken, Depends(Body(RefreshToken))]) -> Response:
        """End a session: sign out."""
        await self._accounts.revoke(wish.refresh_token or self._cookie(request), client_of(request))
        answer = Response(status_code=204)
        self._identify.drop_cookie(answer)
        return answer

    def _cookie(self, request: Request) -> str:
        """The session's token, if a page of ours sends it."""
        return self._identify.cookie_of(request) if from_our_page(request) else ""

    async def change_password(
        self, request: Request, wish: Annotated[NewPassword, Depends(Body(NewPassword))]
    ) -> Response:
        """Set one's own password; every other session of the account ends, and so do its tokens."""
        by = _person(request)
        guess = f"{client_of(request)} {by.name}"
        if not self._guesses.allows(guess):
            raise HTTPException(429, TOO_MANY, {"retry-after": "30"})
        try:
            await self._accounts.change_own_password(by, wish.current, wish.new)
        except Unproven:
            self._guesses.count(guess)
            raise
        return Response(status_code=204)

    def _spend(self, failures: Buckets, client: str) -> None:
        if not failures.allows(client):
            raise HTTPException(429, TOO_MANY, {"retry-after": "30"})
        failures.count(client)

    def _grant(self, request: Request, session: str, name: str, token: str, *, cookie: bool) -> Answer[Grant]:
        answer = Answer(
            Grant(
                access_token="" if cookie else self._identify.access_token(session, name),
                expires_in=ACCESS_SECONDS,
                refresh_token="" if cookie else token,
                account=self._view(self._accounts.account(name)),
            )
        )
        if cookie:
            self._identify.set_cookie(request, answer, token)
        return answer

    def _view(self, account: Account) -> AccountView:
        return AccountView(
            name=account.name,
            organisation=account.organisation,
            role=account.role,
            host=account.organisation == self._accounts.host,
            disabled=account.disabled,
            created_at=account.created_at,
        )

    # -- accounts ------------------------------------------------------------------------------------------

    async def list_accounts(
        self, request: Request, limit: Limit = 100, after: After = "", role: Text = "", organisation: Text = ""
    ) -> Answer[Page[AccountView]]:
        """The accounts that the caller looks after, by name."""
        chosen = [
            account
            for account in self._accounts.looked_after(request.state.identity)
            if account.name > after
            and (not role or account.role == role)
            and (not organisation or account.organisation == organisation)
        ]
        found = chosen[:limit]
        return Answer(Page(items=[self._view(a) for a in found], next=found[-1].name if len(chosen) > limit else None))

    async def change_account(
        self, request: Request, account: str, wish: Annotated[AccountChange, Depends(Body(AccountChange))]
    ) -> Answer[AccountView]:
        """Give a role, lock somebody out or in again, or set a password; the latter two end sessions and tokens."""
        request.state.target = f"{request.url.path}: {_in_words(wish)}"
        changed = await self._accounts.change(
            request.state.identity, account, role=wish.role, disabled=wish.disabled, password=wish.password
        )
        return Answer(self._view(changed))

    async def remove_account(self, request: Request, account: str) -> Response:
        """Delete an account with its sessions and tokens."""
        await self._accounts.remove(request.state.identity, account)
        return Response(status_code=204)

    # -- organisations -------------------------------------------------------------------------------------

    async def list_organisations(
        self, request: Request, limit: Limit = 100, after: After = ""
    ) -> Answer[Page[OrganisationView]]:
        """The organisations that the caller looks after, with what they may have at once and what they have."""
        found = [self._organisation(each) for each in self._accounts.organisations(request.state.identity)]
        return Answer(page_by_name(found, limit, after, lambda each: each.name))

    async def limit_organisation(
        self, request: Request, organisation: str, wish: Annotated[QuotaChange, Depends(Body(QuotaChange))]
    ) -> Answer[OrganisationView]:
        """Say how much its people may have. For admins of the host."""
        quota = {name: most for name, most in msgspec.structs.asdict(wish).items() if most is not UNSET}
        said = ", ".join(f"{name} {'any' if most is None else most}" for name, most in quota.items())
        request.state.target = f"{request.url.path}: {said or 'nothing'}"
        return Answer(self._organisation(await self._accounts.limit(request.state.identity, organisation, quota)))

    def _organisation(self, it: Organisation) -> OrganisationView:
        quota = Quota(jobs=it.jobs, nodes=it.nodes, node_hours=it.node_hours, stored=it.stored)
        used = self._used(self._accounts.people_of(it.name))
        return OrganisationView(name=it.name, host=it.host, quota=quota, used=used, created_at=it.created_at)

    # -- tokens --------------------------------------------------------------------------------------------

    async def list_tokens(self, request: Request, limit: Limit = 100, after: After = "") -> Answer[Page[TokenView]]:
        """One's own tokens for programs."""
        tokens = [token_view(token) for token in self._accounts.tokens(request.state.identity)]
        return Answer(page_by_name(tokens, limit, after, lambda token: token.id))

    async def issue_token(
        self, request: Request, wish: Annotated[NewToken, Depends(Body(NewToken))]
    ) -> Answer[IssuedToken]:
        """A token for a program, with at most one's own role; takes a session, a token cannot make tokens."""
        seconds = None if wish.days is None else wish.days * 86_400.0
        token, secret = await self._accounts.issue_token(_person(request), wish.label, wish.role, seconds)
        issued = IssuedToken(secret=secret, token=token_view(token))
        return Answer(issued, 201, {"location": f"/api/v1/tokens/{token.id}"})

    async def revoke_token(self, request: Request, token: str) -> Response:
        await self._accounts.revoke_token(request.state.identity, token)
        return Response(status_code=204)

    # -- the audit log -------------------------------------------------------------------------------------

    async def list_audit(
        self,
        request: Request,
        limit: Limit = 100,
        after: Annotated[int, Query(ge=0)] = 0,
        who: Text = "",
        newest: bool = False,
    ) -> Answer[Page[AuditView]]:
        """Who did what, when and from where, in order, or the newest first."""
        found = await self._accounts.audit(request.state.identity, after, limit, who=who or None, newest=newest)
        items = [AuditView(number=number, entry=entry) for number, entry in found]
        return Answer(Page(items=items, next=str(items[-1].number) if len(items) == limit else None))

    async def export_audit(self, request: Request, format: Literal["csv", "jsonl"] = "csv", who: Text = "") -> Response:
        """The whole audit log as a file."""
        by: Identity = request.state.identity
        await self._accounts.audit(by, 0, 1, who=who or None)  # what can go wrong does so before the answer begins
        rows = _csv(self._entries(by, who)) if format == "csv" else _json_lines(self._entries(by, who))
        kind = "text/csv; charset=utf-8" if format == "csv" else "application/jsonl"
        headers = {"content-disposition": f'attachment; filename="tutti-audit.{format}"'}
        return StreamingResponse(rows, media_type=kind, headers=headers)

    async def _entries(self, by: Identity, who: str) -> AsyncIterator[list[AuditEntry]]:
        after = 0
        while found := await self._accounts.audit(by, after, EXPORT_BATCH, who=who or None):
            yield [entry for _, entry in found]
            after = found[-1][0]


async def _csv(batches: AsyncIterator[list[AuditEntry]]) -> AsyncIterator[bytes]:
    fields = AuditEntry.__struct_fields__
    yield (",".join(fields) + "\r\n").encode()
    async for batch in batches:
        text = io.StringIO()
        csv.writer(text).writerows([_cell(getattr(entry, field)) for field in fields] for entry in batch)
        yield text.getvalue().encode()


def _cell(value: object) -> object:
    """Names come from strangers: a spreadsheet must not take one for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


async def _json_lines(batches: AsyncIterator[list[AuditEntry]]) -> AsyncIterator[bytes]:
    async for batch in batches:
        yield b"".join(msgspec.json.encode(entry) + b"\n" for entry in batch)


def _in_words(wish: AccountChange) -> str:
    """What the audit log says of a change; of a password, only that there is a new one."""
    said = [] if wish.role is None else [f"role {wish.role or 'none'}"]
    if wish.disabled is not None:
        said.append("locked out" if wish.disabled else "let in")
    if wish.password is not None:
        said.append("new password")
    return ", ".join(said) or "nothing"


def _person(request: Request) -> Identity:
    """The caller, who has to have an account; raises Conflict for the operator, who has none."""
    identity: Identity = request.state.identity
    if not identity.organisation:
        raise Conflict("the operator has no account: sign in with one for this")
    return identity


def add_routes(api: Api, its: AccountRoutes) -> None:
    api.add("GET", "/auth/session", its.show_session, TAG)
    api.add("POST", "/auth/signup", its.sign_up, TAG, 201)
    api.add("POST", "/auth/signin", its.sign_in, TAG)
    api.add("POST", "/auth/refresh", its.refresh, TAG)
    api.add("POST", "/auth/revoke", its.revoke, TAG, 204)
    api.add("POST", "/auth/password", its.change_password, TAG, 204)
    api.add("GET", "/api/v1/accounts", its.list_accounts, TAG)
    api.add("PATCH", "/api/v1/accounts/{account}", its.change_account, TAG)
    api.add("DELETE", "/api/v1/accounts/{account}", its.remove_account, TAG, 204)
    api.add("GET", "/api/v1/organisations", its.list_organisations, TAG)
    api.add("PATCH", "/api/v1/organisations/{organisation}", its.limit_organisation, TAG)
    api.add("GET", "/api/v1/tokens", its.list_tokens, TAG)
    api.add("POST", "/api/v1/tokens", its.issue_token, TAG, 201)
    api.add("DELETE", "/api/v1/tokens/{token}", its.revoke_token, TAG, 204)
    api.add("GET", "/api/v1/audit", its.list_audit, TAG)
    api.add("GET", "/api/v1/audit/export", its.export_audit, TAG)
