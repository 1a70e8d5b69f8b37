"""Accounts: who may use the coordinator, the sessions and tokens they prove themselves with, and the audit log.

Everything is held in memory, where each request looks, and written to the store before it counts.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from tutti.core.errors import Conflict, Forbidden, NotFound, Unproven
from tutti.domain import accounts as d
from tutti.domain.accounts import (
    Account,
    ApiToken,
    AuditEntry,
    Identity,
    Organisation,
    Record,
    Role,
    Session,
    check_may_manage,
    key_of,
)
from tutti.domain.quotas import Kind, Used, excess
from tutti.ports.accounts import AccountStore, Passwords
from tutti.services.finish import to_the_end
from tutti.services.members import fingerprint

TOKEN_PREFIX = "tutti_"  # noqa: S105 - what an API token begins with, so that scanners recognise a leaked one
FIRST_ORGANISATION = "home"


class Accounts:
    """`load` first. Methods that take `by` raise Forbidden where that person may not do it."""

    def __init__(self, store: AccountStore, passwords: Passwords, clock: Callable[[], float]) -> None:
        self._store, self._passwords, self._clock = store, passwords, clock
        self._organisations: dict[str, Organisation] = {}
        self._accounts: dict[str, Account] = {}
        self._sessions: dict[str, Session] = {}
        self._tokens: dict[str, ApiToken] = {}
        self._by_hash: dict[str, ApiToken] = {}
        self._changing = asyncio.Lock()
        self._decoy: str | None = None

    async def load(self) -> None:
        self._apply(put=await self._store.load())

    async def close(self) -> None:
        await self._store.close()

    @property
    def exist(self) -> bool:
        """Whether anybody has an account; before that, whoever operates the machine makes the first."""
        return bool(self._accounts)

    # -- proving oneself -----------------------------------------------------------------------------------

    def by_api_token(self, token: str) -> Identity | None:
        """Whose token for programs this is, if it is good now."""
        found = self._by_hash.get(fingerprint(token))
        if found is None or (found.expires_at is not None and self._clock() >= found.expires_at):
            return None
        return self._identity(found.account, most=found.role)

    def by_session_token(self, token: str) -> Identity | None:
        """Whose session this is, if it has not ended; a token that was replaced works for a moment longer."""
        found = self._session_of(token)
        if found is None or d.standing(found, fingerprint(token), self._clock()) == "stale":
            return None
        return self._identity(found.account, session=found.id)

    def by_session(self, session: str) -> Identity | None:
        """Whose session this is, if it has not ended."""
        found = self._lasting(session)
        return None if found is None else self._identity(found.account, session=session)

    def _lasting(self, session: str) -> Session | None:
        found = self._sessions.get(session)
        return None if found is None or self._clock() >= found.expires_at else found

    def _session_of(self, token: str) -> Session | None:
        """The session that this says to be a token of, if it has not ended."""
        return self._lasting(token.partition(".")[0])

    def _identity(self, name: str, *, most: Role = "admin", session: str = "") -> Identity | None:
        account = self._accounts.get(name)
        if account is None or account.disabled:
            return None
        host = self._organisations[account.organisation].host
        role = d.lesser(account.role, most)
        return Identity(name=name, role=role, organisation=account.organisation, host=host, session=session)

    async def sign_in(self, name: str, password: str, origin: str) -> tuple[Session, str]:
        """A new session and its token; raises Unproven, taking as long, whether it is the name or the password."""
        account = self._accounts.get(name.lower())
        known = account.password if account else await self._decoy_hash()
        right = await self._passwords.verify(known, password)
        async with self._changing:
            account = self._accounts.get(name.lower())
            if account is None or not right or account.password != known or account.disabled:
                await self.note(name[:128], "sign in", name[:128], 401, origin)
                raise Unproven("the name or the password is wrong, or the account is disabled")
            now, session_id = self._clock(), secrets.token_hex(8)
            token = _session_token(session_id)
            session = Session(
                id=session_id,
                account=account.name,
                token=fingerprint(token),
                created_at=now,
                expires_at=now + d.SESSION_SECONDS,
                origin=origin,
            )
            ended = [each for each in self._sessions.values() if now >= each.expires_at]
            mine = sorted(self._sessions_of(account.name), key=lambda each: each.created_at)
            too_many = mine[: max(0, len(mine) + 1 - d.SESSIONS_EACH)]
            gone = {each.id: each for each in [*ended, *too_many]}.values()
            done = self._entry(account.name, "sign in", account.name, 200, origin)
            await self._write([session], delete=list(gone), audit=[done])
        return session, token

    async def _decoy_hash(self) -> str:
        """What the password of nobody is compared with, so that guessing names takes as long as guessing passwords."""
        if self._decoy is None:
            self._decoy = await self._passwords.hash(secrets.token_urlsafe(16))
        return self._decoy

    async def refresh(self, token: str, origin: str) -> tuple[Session, str]:
        """A new token for the session, which lasts on; any that was replaced before ends it if it is shown again."""
        async with self._changing:
            found, now = self._session_of(token), self._clock()
            if found is None:
                raise Unproven("this session has ended: sign in again")
            if await self._end_if_stale(token, origin):
                raise Unproven("this token was used before, so the session has been ended: sign in again")
            if fingerprint(token) != found.token:
                raise Unproven("this token was replaced a moment ago: use the new one")
            new = _session_token(found.id)
            ends = min(now + d.SESSION_SECONDS, found.created_at + d.LONGEST_SESSION)
            session = replace(
                found, token=fingerprint(new), previous=found.token, rotated_at=now, expires_at=ends, origin=origin
            )
            await self._write([session])
        return session, new

    async def end_if_stale(self, token: str, origin: str) -> None:
        """End the session of this token if it was replaced long ago: somebody has a copy of it, or of its successor."""
        async with self._changing:
            await self._end_if_stale(token, origin)

    async def _end_if_stale(self, token: str, origin: str) -> bool:
        found = self._session_of(token)
        if found is None or d.standing(found, fingerprint(token), self._clock()) != "stale":
            return False
        await self._write(delete=[found], audit=[self._entry(found.account, "stolen?", found.id, 401, origin)])
        return True

    async def revoke(self, token: str, origin: str) -> None:
        """End the session of this token; nothing happens if it has ended already."""
        async with self._changing:
            if await self._end_if_stale(token, origin):
                return
            found = self._session_of(token)
            if found is not None:
                await self._write(delete=[found], audit=[self._entry(found.account, "sign out", found.id, 204, origin)])

    # -- accounts ------------------------------------------------------------------------------------------

    async def sign_up(
        self, by: Identity | None, name: str, password: str, *, organisation: str = "", role: Role | None = None
    ) -> Account:
        """A new account. The first is the admin's and makes the host organisation; who signs up alone has no role yet.

        Raises Forbidden, Conflict for a name that is taken, NotFound for an unknown organisation, BadPassword.
        """
        name = name.lower()
        d.check_password(name, password)
        self._check_may_add(by)
        hashed = await self._passwords.hash(password)
        async with self._changing:
            self._check_may_add(by)
            if name in self._accounts:
                raise Conflict(f"there is an account {name!r} already: choose another name, or sign in")
            where, new = self._organisation(by, organisation)
            if not self._accounts:
                role = "admin"
            elif by is None:
                role = ""
            else:
                check_may_manage(by, where.name)
                role = "viewer" if role is None else role
            account = Account(name=name, organisation=where.name, role=role, password=hashed, created_at=self._clock())
            await self._write([where, account] if new else [account])
        return account

    def _check_may_add(self, by: Identity | None) -> None:
        if not self._accounts and by is None:
            raise Forbidden("there are no accounts yet: whoever operates the coordinator makes the first")
        if by is not None and not d.allows(by.role, "admin"):
            raise Forbidden(f"only an admin may add accounts, {by.name} is none")
        if by is None and sum(not account.role for account in self._accounts.values()) >= d.WAITING_AT_MOST:
            raise Forbidden(f"{d.WAITING_AT_MOST} accounts wait for an admin already: ask one to look after them")

    def _organisation(self, by: Identity | None, name: str) -> tuple[Organisation, bool]:
        """The organisation of a new account, and whether it is new: only the host's admins may add one."""
        name = name or (by.organisation if by else "") or self.host or FIRST_ORGANISATION
        if name in self._organisations:
            return self._organisations[name], False
        if by is None or not by.host:
            raise NotFound(f"there is no organisation {name!r} here: ask an admin of {self.host!r} to add it")
        return Organisation(name=name, created_at=self._clock(), host=not self._organisations), True

    def organisations(self, by: Identity) -> list[Organisation]:
        """Those whose accounts `by` looks after, by name."""
        return [each for name, each in sorted(self._organisations.items()) if by.host or name == by.organisation]

    async def limit(self, by: Identity, name: str, quota: Mapping[str, Any]) -> Organisation:
        """Change an organisation's quota, by field; only the host's admins may. Raises NotFound."""
        check_may_manage(by, self.host)
        async with self._changing:
            if name not in self._organisations:
                raise NotFound(f"there is no organisation {name!r}")
            new = replace(self._organisations[name], **quota)
            await self._write([new])
        return new

    def check_quota(self, who: str, one_more: Kind, used: Callable[[Callable[[str], bool]], Used]) -> None:
        """Raise Conflict if one more job or node of `who` is too many; `used` says what some people have."""
        account = self._account_behind(who)
        if account is None:
            return
        its = self._organisations[account.organisation]
        if (reason := excess(its, used(self.people_of(its.name)), one_more)) is not None:
            raise Conflict(f"{its.name} {reason}, or ask an admin of the host for more")

    def people_of(self, organisation: str) -> Callable[[str], bool]:
        """Whether somebody, as the log calls them, is of this organisation."""

        def theirs(who: str) -> bool:
            account = self._account_behind(who)
            return account is not None and account.organisation == organisation

        return theirs

    def _account_behind(self, who: str) -> Account | None:
        """Of somebody as the log calls them: `ada at 127.0.0.1`."""
        return self._accounts.get(who.partition(" ")[0])

    @property
    def host(self) -> str:
        """The organisation that runs the coordinator; empty before set-up."""
        return next((each.name for each in self._organisations.values() if each.host), "")

    def looked_after(self, by: Identity) -> list[Account]:
        """The accounts that `by` looks after, by name."""
        return [a for _, a in sorted(self._accounts.items()) if by.host or a.organisation == by.organisation]

    def account(self, name: str) -> Account:
        if name.lower() not in self._accounts:
            raise NotFound(f"there is no account {name!r}")
        return self._accounts[name.lower()]

    async def change(
        self,
        by: Identity,
        name: str,
        *,
        role: Role | None = None,
        disabled: bool | None = None,
        password: str | None = None,
    ) -> Account:
        """Give another role, lock out, or set a password; the latter two end the account's sessions and tokens."""
        check_may_manage(by, self.account(name).organisation)
        hashed = None
        if password is not None:
            d.check_password(name, password)
            hashed = await self._passwords.hash(password)
        async with self._changing:
            old = self.account(name)
            new = replace(
                old,
                role=old.role if role is None else role,
                password=hashed or old.password,
                disabled=old.disabled if disabled is None else disabled,
            )
            d.check_someone_is_left([*self._others(old), new], self.host)
            ends = hashed is not None or new.disabled
            await self._write([new], delete=self._proofs_of(old.name) if ends else [])
        return new

    async def change_own_password(self, by: Identity, current: str, new: str) -> None:
        """Ends the account's other sessions and its tokens; raises Unproven if `current` is wrong."""
        known = self.account(by.name).password
        d.check_password(by.name, new)
        if not await self._passwords.verify(known, current):
            raise Unproven("the current password is wrong")
        hashed = await self._passwords.hash(new)
        async with self._changing:
            old = self.account(by.name)
            if old.password != known:
                raise Unproven("the password was changed meanwhile: sign in with the new one")
            others = [session for session in self._sessions_of(old.name) if session.id != by.session]
            await self._write([replace(old, password=hashed)], delete=[*others, *self._tokens_of(old.name)])

    async def remove(self, by: Identity, name: str) -> None:
        """Delete an account with its sessions and tokens; what it did stays in the audit log."""
        async with self._changing:
            account = self.account(name)
            check_may_manage(by, account.organisation)
            left = self._others(account)
            if not left:
                raise Conflict("this is the last account: without it, nobody would have to sign in")
            d.check_someone_is_left(left, self.host)
            await self._write(delete=[account, *self._proofs_of(account.name)])

    def _others(self, account: Account) -> list[Account]:
        return [each for each in self._accounts.values() if each.name != account.name]

    # -- tokens for programs -------------------------------------------------------------------------------

    async def issue_token(self, by: Identity, label: str, role: Role, seconds: float | None) -> tuple[ApiToken, str]:
        """A token of one's own, and what it reads; that is shown only now.

        Raises Forbidden without a session: a token that makes tokens would outlive its expiry and its revocation.
        """
        if not by.session:
            raise Forbidden(f"a token cannot make another: sign in as {by.name} for this")
        async with self._changing:
            if self._lasting(by.session) is None:
                raise Unproven("this session has ended: sign in again")
            account = self.account(by.name)
            if len(self._tokens_of(account.name)) >= d.TOKENS_EACH:
                raise Conflict(f"{account.name} has {d.TOKENS_EACH} tokens already: revoke one that is not used")
            now, secret = self._clock(), TOKEN_PREFIX + secrets.token_urlsafe(32)
            token = ApiToken(
                id=secrets.token_hex(8),
                account=account.name,
                label=label,
                role=d.lesser(role, by.role),
                token=fingerprint(secret),
                created_at=now,
                expires_at=None if seconds is None else now + seconds,
            )
            await self._write([token])
        return token, secret

    def tokens(self, by: Identity) -> list[ApiToken]:
        """One's own, the oldest first."""
        return sorted(self._tokens_of(by.name), key=lambda each: (each.created_at, each.id))

    async def revoke_token(self, by: Identity, token: str) -> None:
        """One's own, or that of an account one looks after; raises NotFound."""
        async with self._changing:
            found = self._tokens.get(token)
            if found is None:
                raise NotFound(f"there is no token {token!r}")
            if found.account != by.name:
                check_may_manage(by, self.account(found.account).organisation)
            await self._write(delete=[found])

    # -- the audit log -------------------------------------------------------------------------------------

    async def note(
        self, who: str, action: str, target: str, outcome: int, origin: str, *, organisation: str | None = None
    ) -> None:
        """Add to the audit log."""
        await self._store.write(audit=[self._entry(who, action, target, outcome, origin, organisation)])

    def _entry(
        self, who: str, action: str, target: str, outcome: int, origin: str, organisation: str | None = None
    ) -> AuditEntry:
        if organisation is None:
            organisation = self._accounts[who].organisation if who in self._accounts else self.host
        return AuditEntry(
            at=self._clock(),
            who=who,
            organisation=organisation,
            origin=origin,
            action=action,
            target=target[:200],
            outcome=outcome,
        )

    async def audit(
        self, by: Identity, after: int = 0, limit: int = 100, *, who: str | None = None, newest: bool = False
    ) -> Sequence[tuple[int, AuditEntry]]:
        """What was done in the organisation of `by`, or everywhere for the host's admins; see `AccountStore.audit`."""
        check_may_manage(by, by.organisation)
        organisation = None if by.host else by.organisation
        return await self._store.audit(after, limit, organisation=organisation, who=who, newest=newest)

    # -- memory and store ----------------------------------------------------------------------------------

    def _sessions_of(self, name: str) -> list[Session]:
        return [session for session in self._sessions.values() if session.account == name]

    def _proofs_of(self, name: str) -> list[Record]:
        return [*self._sessions_of(name), *self._tokens_of(name)]

    def _tokens_of(self, name: str) -> list[ApiToken]:
        return [token for token in self._tokens.values() if token.account == name]

    async def _write(
        self, put: Sequence[Record] = (), *, delete: Sequence[Record] = (), audit: Sequence[AuditEntry] = ()
    ) -> None:
        """To the store, then to memory, as one even if the caller goes away."""

        async def both() -> None:
            await self._store.write(put, delete=delete, audit=audit)
            self._apply(put=put, delete=delete)

        await to_the_end(both())

    def _apply(self, put: Iterable[Record] = (), delete: Iterable[Record] = ()) -> None:
        for record in delete:
            self._table(record).pop(key_of(record)[1], None)
        for record in put:
            self._table(record)[key_of(record)[1]] = record
        self._by_hash = {each.token: each for each in self._tokens.values()}

    def _table(self, record: Record) -> dict[str, Record]:
        tables: dict[type, dict[str, Record]] = {
            Organisation: self._organisations,  # type: ignore[dict-item]  # each holds records of its own kind
            Account: self._accounts,  # type: ignore[dict-item]
            Session: self._sessions,  # type: ignore[dict-item]
            ApiToken: self._tokens,  # type: ignore[dict-item]
        }
        return tables[type(record)]


def _session_token(session: str) -> str:
    """Tells whose it is, also when it is long replaced; only the rest is secret."""
    return f"{session}.{secrets.token_urlsafe(32)}"
