"""Accounts: what happens when two things happen at once, and what a session's tokens are worth."""

import asyncio

import pytest

from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.core.errors import Unproven
from tutti.domain.accounts import ROTATION_GRACE, Identity, Session, standing
from tutti.services.accounts import Accounts
from tutti.services.finish import to_the_end

OLD, NEW = "correct horse battery", "a better password"
OPERATOR = Identity(name="the operator", role="admin", host=True)


class Slow(Argon2Passwords):
    """Compares passwords, and says so only when `may_answer` is set."""

    def __init__(self) -> None:
        super().__init__(memory=64, passes=1)
        self.compared, self.may_answer = asyncio.Event(), asyncio.Event()

    async def verify(self, hash: str, password: str) -> bool:
        right = await super().verify(hash, password)
        self.compared.set()
        await self.may_answer.wait()
        return right


class Here:
    def __init__(self) -> None:
        self.passwords, self.store = Slow(), MemoryAccounts()
        self.accounts = Accounts(self.store, self.passwords, lambda: 1000.0)

    async def sessions(self) -> list[Session]:
        return [record for record in await self.store.load() if isinstance(record, Session)]


@pytest.fixture
async def here():
    here = Here()
    for name in ("ada", "bob"):
        await here.accounts.sign_up(OPERATOR, name, OLD, role="viewer")
    return here


async def reset(here):
    await here.accounts.change(OPERATOR, "bob", password=NEW)


async def lock_out(here):
    await here.accounts.change(OPERATOR, "bob", disabled=True)


async def remove(here):
    await here.accounts.remove(OPERATOR, "bob")


async def make_anew(here):
    await here.accounts.remove(OPERATOR, "bob")
    await here.accounts.sign_up(OPERATOR, "bob", OLD)


@pytest.mark.parametrize("meanwhile", [reset, lock_out, remove, make_anew])
async def test_a_sign_in_under_way_does_not_outlive_the_account_it_was_for(here, meanwhile):
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        under_way = tasks.create_task(_outcome(here.accounts.sign_in("bob", OLD, "::1")))
        await here.passwords.compared.wait()
        await meanwhile(here)
        here.passwords.may_answer.set()
    assert isinstance(under_way.result(), Unproven)
    assert await here.sessions() == []


async def test_a_sign_in_under_way_survives_a_new_role(here):
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        under_way = tasks.create_task(here.accounts.sign_in("bob", OLD, "::1"))
        await here.passwords.compared.wait()
        await here.accounts.change(OPERATOR, "bob", role="operator")
        here.passwords.may_answer.set()
    identity = here.accounts.by_session_token(under_way.result()[1])
    assert identity is not None
    assert identity.role == "operator"


async def test_a_change_under_way_does_not_undo_a_reset(here):
    bob = Identity(name="bob", role="viewer", organisation="home")
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        under_way = tasks.create_task(_outcome(here.accounts.change_own_password(bob, OLD, "chosen by the thief")))
        await here.passwords.compared.wait()
        await reset(here)
        here.passwords.may_answer.set()
    assert isinstance(under_way.result(), Unproven)
    await here.accounts.sign_in("bob", NEW, "::1")


async def test_an_ended_session_makes_no_token(here):
    here.passwords.may_answer.set()
    _, token = await here.accounts.sign_in("bob", OLD, "::1")
    bob = here.accounts.by_session_token(token)
    await reset(here)
    with pytest.raises(Unproven, match="this session has ended"):
        await here.accounts.issue_token(bob, "kept", "viewer", None)


async def test_a_session_of_nobody_proves_nothing():
    store = MemoryAccounts()
    await store.write([session_of("nobody")])
    accounts = Accounts(store, Argon2Passwords(memory=64, passes=1), lambda: 1000.0)
    await accounts.load()
    assert accounts.by_session("s1") is None


def session_of(account: str) -> Session:
    return Session(
        id="s1",
        account=account,
        token="third",
        previous="second",
        rotated_at=1000.0,
        created_at=900.0,
        expires_at=9000.0,
        origin="::1",
    )


@pytest.mark.parametrize(
    ("token", "later", "worth"),
    [
        ("third", 0.0, "current"),
        ("third", 2 * ROTATION_GRACE, "current"),
        ("second", ROTATION_GRACE - 1, "replaced"),
        ("second", ROTATION_GRACE, "stale"),
        ("first", 0.0, "stale"),
        ("", 0.0, "stale"),
    ],
)
def test_what_a_token_of_a_session_is_worth(token, later, worth):
    assert standing(session_of("ada"), token, 1000.0 + later) == worth


class Heavy(MemoryAccounts):
    """Writes only when `may_write` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_write = asyncio.Event(), asyncio.Event()

    async def write(self, put=(), *, delete=(), audit=()) -> None:
        self.began.set()
        await self.may_write.wait()
        await super().write(put, delete=delete, audit=audit)


async def test_whoever_is_cancelled_twice_still_writes_before_the_next(here):
    store = Heavy()
    accounts = Accounts(store, here.passwords, lambda: 1000.0)
    first = asyncio.create_task(accounts.sign_up(OPERATOR, "ada", OLD))
    async with asyncio.timeout(30):
        await store.began.wait()
        for _ in range(2):
            first.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not first.done()
        assert accounts._changing.locked()
        store.may_write.set()
        await asyncio.wait((first,))
    assert first.cancelled()
    assert accounts.account("ada").role == "admin"


async def test_an_error_of_cancelled_work_is_not_lost():
    release = asyncio.Event()

    async def work() -> None:
        await release.wait()
        raise OSError("disk full")

    task = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, OSError)


async def _outcome(call):
    try:
        return await call
    except Unproven as refused:
        return refused
