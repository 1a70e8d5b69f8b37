"""Accounts over the API: set-up, sign-in, roles, tokens, expiry, rate limits, cookies and the audit log."""

import asyncio
import csv
import io
import time

import httpx
import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.served import BEARER, OPEN_TO_THE_NETWORK, app_of, caller, served
from support.worlds import World
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.domain.accounts import LONGEST_SESSION, ROTATION_GRACE, SESSION_SECONDS, Identity
from tutti.services.accounts import Accounts

JOB = {"dataset": "toy", "model": "toy", "rounds": 1}
PASSWORD = "correct horse battery"


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


class Here:
    """An app with accounts, and a clock to turn."""

    def __init__(self, world: World, settings=OPEN_TO_THE_NETWORK) -> None:
        self.later = 0.0
        self.accounts = Accounts(
            MemoryAccounts(), Argon2Passwords(memory=64, passes=1), lambda: time.time() + self.later
        )
        self.app = app_of(world, settings, self.accounts)

    def call(self, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
        return caller(self.app, headers)

    async def set_up(self) -> None:
        async with self.call(BEARER) as operator:
            made = await operator.post(
                "/auth/signup", json={"name": "ada", "password": PASSWORD, "organisation": "Ward"}
            )
            assert (made.status_code, made.json()["role"], made.json()["host"]) == (201, "admin", True)

    async def add(self, name: str, role: str, **more: str) -> None:
        async with self.call(BEARER) as operator:
            wish = {"name": name, "password": PASSWORD, "role": role, **more}
            assert (await operator.post("/auth/signup", json=wish)).status_code == 201

    async def grant(self, name: str, password: str = PASSWORD) -> dict:
        async with self.call() as stranger:
            answer = await stranger.post("/auth/signin", json={"username": name, "password": password})
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {(await self.grant(name))['access_token']}"}


@pytest.fixture
async def here(world):
    here = Here(world)
    await here.set_up()
    return here


async def test_set_up_on_this_machine_switches_authentication_on(world):
    here = Here(world, settings=app_settings_of_loopback())
    async with here.call() as somebody:
        before = (await somebody.get("/auth/session")).json()
        assert (before["authentication"], before["setup"], before["role"]) == (False, True, "admin")
        assert (await somebody.get("/api/v1/jobs")).status_code == 200
        await somebody.post("/auth/signup", json={"email": "Ada@Example.org", "password": PASSWORD})
        assert (await somebody.get("/api/v1/jobs")).status_code == 401
        after = (await somebody.get("/auth/session")).json()
        assert (after["authentication"], after["setup"], after["role"]) == (True, False, "")
    async with here.call(await here.bearer("ada@example.org")) as ada:
        assert (await ada.get("/api/v1/jobs")).status_code == 200
    async with here.call(BEARER) as operator:
        assert (await operator.get("/api/v1/accounts")).status_code == 200


def app_settings_of_loopback():
    from support.served import TOKEN
    from tutti.apps.api.settings import ApiSettings
    from tutti.services.members import fingerprint

    return ApiSettings(host="127.0.0.1", token=fingerprint(TOKEN))


async def test_no_stranger_makes_the_first_account(world):
    here = Here(world)
    async with here.call() as stranger:
        answer = await stranger.post("/auth/signup", json={"name": "mallory", "password": PASSWORD})
        assert answer.status_code == 403
        assert "whoever operates the coordinator" in answer.json()["detail"]
    assert not here.accounts.exist


async def test_who_signs_up_alone_waits_for_a_role(here):
    async with here.call() as stranger:
        made = await stranger.post("/auth/signup", json={"name": "bob", "password": PASSWORD})
        assert (made.status_code, made.json()["role"]) == (201, "")
        asked = await stranger.post("/auth/signup", json={"name": "eve", "password": PASSWORD, "role": "admin"})
        assert asked.json()["role"] == ""
        elsewhere = await stranger.post("/auth/signup", json={"name": "x", "password": PASSWORD, "organisation": "new"})
        assert elsewhere.status_code == 404
    async with here.call(await here.bearer("bob")) as bob, here.call(await here.bearer("ada")) as ada:
        refused = await bob.get("/api/v1/jobs")
        assert (refused.status_code, refused.json()["detail"]) == (
            403,
            "an admin has not given bob a role yet: ask one",
        )
        assert (await ada.patch("/api/v1/accounts/bob", json={"role": "viewer"})).json()["role"] == "viewer"
        assert (await bob.get("/api/v1/jobs")).status_code == 200


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("viewer", "GET", "/api/v1/jobs", 200),
        ("viewer", "POST", "/api/v1/jobs", 403),
        ("viewer", "POST", "/api/v1/invites", 403),
        ("viewer", "DELETE", "/api/v1/nodes/x", 403),
        ("viewer", "POST", "/api/v1/datasets/none/preflight", 403),
        ("viewer", "GET", "/api/v1/tokens", 200),
        ("viewer", "GET", "/api/v1/accounts", 403),
        ("operator", "POST", "/api/v1/invites", 201),
        ("operator", "DELETE", "/api/v1/nodes/x", 404),
        ("operator", "POST", "/api/v1/datasets/none/preflight", 404),
        ("operator", "PATCH", "/api/v1/accounts/ada", 403),
        ("operator", "GET", "/api/v1/audit", 403),
        ("admin", "GET", "/api/v1/audit", 200),
        ("admin", "GET", "/api/v1/accounts", 200),
    ],
)
async def test_roles(here, role, method, path, status):
    await here.add("zoe", role)
    async with here.call(await here.bearer("zoe")) as zoe:
        answer = await zoe.request(method, path)
        assert answer.status_code == status, answer.text
        if status == 403:
            assert f"zoe is a{'n' if role != 'viewer' else ''} {role}" in answer.json()["detail"]


async def test_wrong_passwords_say_nothing_and_run_out(here):
    async with here.call() as mallory:
        wishes = [{"name": "ada", "password": "wrong password"}, {"name": "nobody", "password": PASSWORD}]
        answers = [await mallory.post("/auth/signin", json=wish) for wish in wishes]
        assert [a.status_code for a in answers] == [401, 401]
        assert answers[0].json() == answers[1].json()
        for _ in range(4):
            await mallory.post("/auth/signin", json=wishes[0])
        blocked = await mallory.post("/auth/signin", json={"name": "ada", "password": PASSWORD})
        assert (blocked.status_code, blocked.headers["retry-after"]) == (429, "30")


@pytest.mark.parametrize("password", ["short", "adaadaad", "aaaaaaaaaaaa", "x" * 2000])
async def test_bad_passwords(here, password):
    async with here.call(BEARER) as operator:
        answer = await operator.post("/auth/signup", json={"name": "adaadaad", "password": password})
        assert answer.status_code == 422
        assert password not in answer.text


@pytest.mark.parametrize("wish", [{"name": "bob\n"}, {"name": "bob", "organisation": "Clinic\n"}])
async def test_names_end_where_they_seem_to(here, wish):
    async with here.call(BEARER) as operator:
        refused = await operator.post("/auth/signup", json={"password": PASSWORD, **wish})
        assert refused.status_code == 422, refused.text


async def test_a_name_is_taken_once_whatever_its_case(here):
    async with here.call(BEARER) as operator:
        assert (await operator.post("/auth/signup", json={"name": "ADA", "password": PASSWORD})).status_code == 409


# -- sessions ------------------------------------------------------------------------------------------------


async def test_refreshing_replaces_the_token_and_a_stolen_one_ends_the_session(here):
    grant = await here.grant("ada")
    async with here.call() as client:
        fresh = (await client.post("/auth/refresh", json={"refresh_token": grant["refresh_token"]})).json()
        assert fresh["refresh_token"] != grant["refresh_token"]
        again = await client.post("/auth/refresh", json={"refresh_token": grant["refresh_token"]})
        assert (again.status_code, "a moment ago" in again.json()["detail"]) == (401, True)
        here.later = ROTATION_GRACE + 1
        stolen = await client.post("/auth/refresh", json={"refresh_token": grant["refresh_token"]})
        assert (stolen.status_code, "was used before" in stolen.json()["detail"]) == (401, True)
        ended = await client.post("/auth/refresh", json={"refresh_token": fresh["refresh_token"]})
        assert ended.status_code == 401


async def test_a_thief_who_refreshes_twice_is_given_away_by_the_robbed(here):
    grant = await here.grant("ada")
    async with here.call() as thief, here.call() as ada:
        token = grant["refresh_token"]
        for _ in range(3):  # within the grace, and more than one token back
            answer = await thief.post("/auth/refresh", json={"refresh_token": token})
            token, access = answer.json()["refresh_token"], answer.json()["access_token"]
        stolen = await ada.post("/auth/refresh", json={"refresh_token": grant["refresh_token"]})
        assert (stolen.status_code, "was used before" in stolen.json()["detail"]) == (401, True)
        assert (await thief.post("/auth/refresh", json={"refresh_token": token})).status_code == 401
        with_access = await thief.get("/api/v1/jobs", headers={"authorization": f"Bearer {access}"})
        assert with_access.status_code == 401
    async with here.call(await here.bearer("ada")) as ada:
        rows = (await ada.get("/api/v1/audit?who=ada")).json()["items"]
        assert [row["entry"]["action"] for row in rows] == ["sign in", "stolen?", "sign in"]


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/auth/revoke"])
async def test_a_replaced_cookie_ends_the_session_wherever_it_is_shown(here, path):
    wish = {"name": "ada", "password": PASSWORD, "cookie": True}
    async with here.call() as ada, here.call() as thief:
        await ada.post("/auth/signin", json=wish, headers=PAGE)
        thief.cookies.update(ada.cookies)
        assert (await thief.post("/auth/refresh", headers=PAGE)).status_code == 200
        assert (await ada.get("/api/v1/jobs")).status_code == 200  # a request that was under way
        here.later = ROTATION_GRACE + 1
        assert (await thief.get("/api/v1/jobs")).status_code == 200
        await ada.request("GET" if path.startswith("/api") else "POST", path, headers=PAGE)
        assert (await thief.get("/api/v1/jobs")).status_code == 401


async def test_sessions_expire_and_are_refreshed_only_so_long(here):
    grant = await here.grant("ada")
    headers = {"authorization": f"Bearer {grant['access_token']}"}
    async with here.call() as client:
        token = grant["refresh_token"]
        while here.later + SESSION_SECONDS / 2 < LONGEST_SESSION:
            here.later += SESSION_SECONDS / 2
            answer = await client.post("/auth/refresh", json={"refresh_token": token})
            assert answer.status_code == 200
            token = answer.json()["refresh_token"]
        assert (await client.get("/api/v1/jobs", headers=headers)).status_code == 200
        here.later = LONGEST_SESSION + 1
        assert (await client.get("/api/v1/jobs", headers=headers)).status_code == 401
        assert (await client.post("/auth/refresh", json={"refresh_token": token})).status_code == 401


async def test_revoking_ends_a_session_at_once(here):
    grant = await here.grant("ada")
    async with here.call({"authorization": f"Bearer {grant['access_token']}"}) as ada:
        assert (await ada.get("/api/v1/jobs")).status_code == 200
        assert (await ada.post("/auth/revoke", json={"refresh_token": grant["refresh_token"]})).status_code == 204
        assert (await ada.get("/api/v1/jobs")).status_code == 401


async def test_a_live_connection_ends_with_its_session(world, here):
    grant = await here.grant("ada")
    headers = {"authorization": f"Bearer {grant['access_token']}"}
    async with served(here.app) as url, asyncio.timeout(30):
        live = f"ws{url.removeprefix('http')}/ws"
        with pytest.raises(InvalidStatus, match="401"):
            await connect(live)
        async with connect(live, additional_headers=headers) as socket:
            await world.core.members.invite()
            assert "InviteIssued" in str(await socket.recv())
            await here.accounts.revoke(grant["refresh_token"], "")
            await world.core.members.invite()
            with pytest.raises(ConnectionClosed, match="the session has ended"):
                await socket.recv()


async def test_tampered_expired_and_foreign_access_tokens(here):
    token = (await here.grant("ada"))["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    head, body, signature = token.split(".")
    key = here.app.state.identify._key
    async with here.call({"authorization": f"Bearer {jwt.encode(claims, key, 'HS256')}"}) as ada:
        assert (await ada.get("/api/v1/jobs")).status_code == 200
    bad = [
        f"{head}.{body}.{signature[:-4]}AAAA",
        jwt.encode(claims, "another key that is long enough to be one", "HS256"),
        jwt.encode(claims, None, "none"),
        jwt.encode({**claims, "iat": claims["iat"] + 60}, key, "HS256"),  # of a former owner, whose clock was ahead
        "a.b.c",
        "tutti_nonsense",
        "",
    ]
    for each in bad:
        async with here.call({"authorization": f"Bearer {each}"}) as mallory:
            assert (await mallory.get("/api/v1/jobs")).status_code == 401, each


async def test_a_new_password_ends_other_sessions(here):
    old, mine = await here.grant("ada"), await here.grant("ada")
    async with here.call({"authorization": f"Bearer {mine['access_token']}"}) as ada:
        wrong = await ada.post("/auth/password", json={"current": "not it, sorry", "new": "a better password"})
        assert wrong.status_code == 401
        assert (
            await ada.post("/auth/password", json={"current": PASSWORD, "new": "a better password"})
        ).status_code == 204
        assert (await ada.get("/api/v1/jobs")).status_code == 200
    async with here.call({"authorization": f"Bearer {old['access_token']}"}) as other:
        assert (await other.get("/api/v1/jobs")).status_code == 401
    assert (await here.grant("ada", "a better password"))["account"]["name"] == "ada"


# -- browsers ------------------------------------------------------------------------------------------------

PAGE = {"origin": "http://127.0.0.1:8000"}


async def test_a_browser_keeps_its_session_in_a_cookie_scripts_cannot_read(here):
    async with here.call() as browser:
        wish = {"name": "ada", "password": PASSWORD, "cookie": True}
        answer = await browser.post("/auth/signin", json=wish, headers=PAGE)
        assert (answer.json()["access_token"], answer.json()["refresh_token"]) == ("", "")
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie for part in ("tutti_session_8000=", "HttpOnly", "SameSite=strict", "Path=/"))
        assert (await browser.get("/auth/session")).json()["name"] == "ada"
        assert (await browser.post("/api/v1/invites", headers=PAGE)).status_code == 201
        first = browser.cookies["tutti_session_8000"]
        assert (await browser.post("/auth/refresh", headers=PAGE)).status_code == 200
        assert browser.cookies["tutti_session_8000"] != first
        assert (await browser.post("/auth/revoke", headers=PAGE)).status_code == 204
        assert (await browser.get("/api/v1/jobs")).status_code == 401


async def test_another_sites_page_cannot_use_the_cookie(here):
    async with here.call() as browser:
        await browser.post("/auth/signin", json={"name": "ada", "password": PASSWORD, "cookie": True}, headers=PAGE)
        evil = await browser.post("/api/v1/invites", headers={"origin": "https://evil.example"})
        assert (evil.status_code, "may not call" in evil.json()["detail"]) == (403, True)
        silent = await browser.post("/api/v1/invites")
        assert (silent.status_code, "which page sent this" in silent.json()["detail"]) == (403, True)
        assert (await browser.post("/api/v1/invites", headers={"sec-fetch-site": "same-origin"})).status_code == 201
        await browser.post("/auth/revoke")  # not by our page: the session stays
        assert (await browser.get("/api/v1/jobs")).status_code == 200


# -- accounts ------------------------------------------------------------------------------------------------


async def test_admins_look_after_their_own_organisation(here):
    await here.add("ben", "admin", organisation="Clinic")
    await here.add("cat", "viewer", organisation="Clinic")
    async with here.call(await here.bearer("ben")) as ben:
        assert [a["name"] for a in (await ben.get("/api/v1/accounts")).json()["items"]] == ["ben", "cat"]
        assert (await ben.patch("/api/v1/accounts/cat", json={"role": "operator"})).status_code == 200
        assert (await ben.patch("/api/v1/accounts/ada", json={"role": "viewer"})).status_code == 403
        assert (await ben.delete("/api/v1/accounts/ada")).status_code == 403
        new = {"name": "dan", "password": PASSWORD, "organisation": "Third"}
        assert (await ben.post("/auth/signup", json=new)).status_code == 404
        own = await ben.post("/auth/signup", json={"name": "dan", "password": PASSWORD})
        assert own.json()["organisation"] == "Clinic"
        assert {row["entry"]["organisation"] for row in (await ben.get("/api/v1/audit")).json()["items"]} == {"Clinic"}
    async with here.call(await here.bearer("ada")) as ada:
        assert len((await ada.get("/api/v1/accounts")).json()["items"]) == 4
        some = (await ada.get("/api/v1/accounts?limit=3")).json()
        rest = (await ada.get(f"/api/v1/accounts?limit=3&after={some['next']}")).json()
        assert ([a["name"] for a in some["items"]], [a["name"] for a in rest["items"]]) == (
            ["ada", "ben", "cat"],
            ["dan"],
        )
        assert (await ada.delete("/api/v1/accounts/dan")).status_code == 204
        assert (await ada.get("/api/v1/accounts?role=operator")).json()["items"][0]["name"] == "cat"


async def test_the_last_admin_stays(here):
    async with here.call(await here.bearer("ada")) as ada:
        for change in ({"role": "viewer"}, {"disabled": True}):
            refused = await ada.patch("/api/v1/accounts/ada", json=change)
            assert (refused.status_code, "without an admin" in refused.json()["detail"]) == (409, True)
        assert (await ada.delete("/api/v1/accounts/ada")).status_code == 409
        assert (await ada.get("/api/v1/accounts")).status_code == 200


async def test_locking_out_ends_sessions_and_tokens(here):
    await here.add("bob", "operator")
    headers = await here.bearer("bob")
    async with here.call(headers) as bob, here.call(await here.bearer("ada")) as ada:
        secret = (await bob.post("/api/v1/tokens", json={"label": "ci", "role": "operator"})).json()["secret"]
        assert (await ada.patch("/api/v1/accounts/bob", json={"disabled": True})).status_code == 200
        assert (await bob.get("/api/v1/jobs")).status_code == 401
        async with here.call({"authorization": f"Bearer {secret}"}) as program:
            assert (await program.get("/api/v1/jobs")).status_code == 401


# -- tokens --------------------------------------------------------------------------------------------------


async def test_a_token_cannot_make_tokens(here):
    async with here.call(await here.bearer("ada")) as ada:
        wish = {"label": "short", "role": "admin", "days": 1}
        secret = (await ada.post("/api/v1/tokens", json=wish)).json()["secret"]
    async with here.call({"authorization": f"Bearer {secret}"}) as program:
        refused = await program.post("/api/v1/tokens", json={"label": "for ever", "role": "admin"})
        assert (refused.status_code, refused.json()["detail"]) == (
            403,
            "a token cannot make another: sign in as ada for this",
        )


@pytest.mark.parametrize("who", ["an admin", "the person"])
async def test_a_new_password_revokes_tokens(here, who):
    await here.add("bob", "operator")
    async with here.call(await here.bearer("bob")) as bob, here.call(BEARER) as operator:
        secret = (await bob.post("/api/v1/tokens", json={"label": "ci"})).json()["secret"]
        if who == "an admin":
            answer = await operator.patch("/api/v1/accounts/bob", json={"password": "a better password"})
        else:
            answer = await bob.post("/auth/password", json={"current": PASSWORD, "new": "a better password"})
        assert answer.is_success
    async with here.call({"authorization": f"Bearer {secret}"}) as program:
        assert (await program.get("/api/v1/jobs")).status_code == 401
    assert here.accounts.tokens(Identity(name="bob", role="operator")) == []


async def test_tokens_for_programs(here):
    await here.add("bob", "operator")
    async with here.call(await here.bearer("bob")) as bob:
        issued = (await bob.post("/api/v1/tokens", json={"label": "nightly", "role": "admin", "days": 1})).json()
        assert issued["token"]["role"] == "operator"  # no more than his own
        assert issued["secret"].startswith("tutti_")
        looking = (await bob.post("/api/v1/tokens", json={"label": "wall"})).json()
        listed = (await bob.get("/api/v1/tokens")).json()["items"]
        assert [(t["label"], t["role"]) for t in listed] == [("nightly", "operator"), ("wall", "viewer")]
        assert issued["secret"] not in str(listed)
        async with here.call({"authorization": f"Bearer {issued['secret']}"}) as program:
            assert (await program.post("/api/v1/invites")).status_code == 201
        async with here.call({"authorization": f"Bearer {looking['secret']}"}) as wall:
            assert (await wall.post("/api/v1/invites")).status_code == 403
        assert (await bob.delete(f"/api/v1/tokens/{looking['token']['id']}")).status_code == 204
        async with here.call({"authorization": f"Bearer {looking['secret']}"}) as wall:
            assert (await wall.get("/api/v1/jobs")).status_code == 401
        here.later = 86_401
        async with here.call({"authorization": f"Bearer {issued['secret']}"}) as program:
            assert (await program.get("/api/v1/jobs")).status_code == 401


# -- the audit log -------------------------------------------------------------------------------------------


async def test_every_action_is_in_the_audit_log(here):
    async with here.call(await here.bearer("ada")) as ada:
        job = (await ada.post("/api/v1/jobs", json=JOB)).json()
        assert job["by"] == "ada at 127.0.0.1"
        await ada.post(f"/api/v1/jobs/{job['id']}/stop")
        await ada.post("/api/v1/jobs", json={"dataset": "toy"})
        await ada.get("/api/v1/jobs")
        await ada.post("/api/v1/datasets/none/preflight")
        rows = (await ada.get("/api/v1/audit")).json()["items"]
        assert [(r["entry"]["who"], r["entry"]["action"], r["entry"]["outcome"]) for r in rows] == [
            ("the operator", "POST /auth/signup", 201),
            ("ada", "sign in", 200),
            ("ada", "POST /api/v1/jobs", 201),
            ("ada", f"POST /api/v1/jobs/{job['id']}/stop", 200),
            ("ada", "POST /api/v1/jobs", 422),
            ("ada", "POST /api/v1/datasets/none/preflight", 404),
        ]
        assert rows[2]["entry"]["target"] == f"/api/v1/jobs/{job['id']}"
        assert {r["entry"]["origin"] for r in rows} == {"127.0.0.1"}
        page = (await ada.get("/api/v1/audit?limit=2&who=ada")).json()
        assert [r["number"] for r in page["items"]] == [2, 3]
        assert (await ada.get(f"/api/v1/audit?after={page['next']}&limit=1")).json()["items"][0]["number"] == 4
        page = (await ada.get("/api/v1/audit?newest=true&limit=4")).json()
        assert page == {"items": rows[:1:-1], "next": "3"}
        page = (await ada.get("/api/v1/audit?newest=true&limit=4&after=3")).json()
        assert page == {"items": rows[1::-1], "next": None}


async def test_the_audit_log_says_how_an_account_was_changed(here):
    async with here.call() as stranger:
        await stranger.post("/auth/signup", json={"name": "bob", "password": PASSWORD})
    wishes = [
        {"role": "operator"},
        {"role": "", "disabled": True},
        {"disabled": False, "password": "another horse"},
        {"password": "short"},
    ]
    async with here.call(await here.bearer("ada")) as ada:
        for wish in wishes:
            await ada.patch("/api/v1/accounts/bob", json=wish)
        rows = (await ada.get("/api/v1/audit?newest=true&limit=4")).json()["items"]
        assert [(row["entry"]["target"], row["entry"]["outcome"]) for row in reversed(rows)] == [
            ("/api/v1/accounts/bob: role operator", 200),
            ("/api/v1/accounts/bob: role none, locked out", 200),
            ("/api/v1/accounts/bob: let in, new password", 200),
            ("/api/v1/accounts/bob: new password", 422),
        ]


async def test_the_audit_log_is_exported_and_harmless_in_a_spreadsheet(here):
    async with here.call() as stranger:
        await stranger.post("/auth/signin", json={"name": "=cmd|' /C calc'!A0", "password": "x"})
    async with here.call(await here.bearer("ada")) as ada:
        table = list(csv.DictReader(io.StringIO((await ada.get("/api/v1/audit/export")).text)))
        assert [row["action"] for row in table] == ["POST /auth/signup", "sign in", "sign in"]
        assert table[1]["who"] == "'=cmd|' /C calc'!A0"
        lines = (await ada.get("/api/v1/audit/export?format=jsonl")).text.splitlines()
        assert len(lines) == 3
        assert PASSWORD not in "".join(lines)


async def test_security_headers(here):
    async with here.call() as stranger:
        answer = await stranger.get("/auth/session")
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers
        by_tls = await stranger.get("https://127.0.0.1:8000/auth/session")
        assert by_tls.headers["strict-transport-security"] == "max-age=31536000"
