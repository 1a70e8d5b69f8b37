"""What holds of every call alike, drawn from the OpenAPI document: pages, ETags, keys, roles, and bad input.

Bad input is answered with the right status and what was expected, and changes nothing.
"""

import json
import re
import time
from typing import Any

import httpx
import jwt
import pytest

from support.served import BEARER, OPEN_TO_THE_NETWORK, TOKEN, app_of, caller
from support.worlds import World
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.apps.api.auth import OPEN, needed_role
from tutti.apps.api.schema import MAX_BODY
from tutti.services.accounts import Accounts

JOB = {"dataset": "toy", "model": "toy", "rounds": 3, "training": {"lr": 0.01}}
PASSWORD = "correct horse battery"
GROUPS = {"jobs", "rounds", "models", "nodes", "ledger", "coordinator", "accounts"}
GROUPS |= {"documented: federated training", "documented: device fleet"}
METHODS = ("get", "post", "put", "patch", "delete", "head")
FILES = {"/api/v1/jobs/{job}/model", "/api/v1/audit/export", "/api/v1/blobs/{digest}", "/metrics"}


class Place:
    """A coordinator with accounts that has trained something, and an app over it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.accounts = Accounts(MemoryAccounts(), Argon2Passwords(memory=64, passes=1), world.core.clock)
        self.app = app_of(world, OPEN_TO_THE_NETWORK, self.accounts)
        self.ids: dict[str, str] = {}
        self.admin: dict[str, str] = {}

    def call(self, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
        return caller(self.app, headers)

    async def bearer(self, name: str) -> dict[str, str]:
        async with self.call() as stranger:
            grant = await stranger.post("/auth/signin", json={"name": name, "password": PASSWORD})
            return {"authorization": f"Bearer {grant.json()['access_token']}"}

    async def fill(self) -> None:
        """Something in every list."""
        async with self.call(BEARER) as operator:
            for name, role in (("ada", "admin"), ("zoe", "viewer"), ("oz", "operator")):
                await operator.post("/auth/signup", json={"name": name, "password": PASSWORD, "role": role})
            for key in ("one", "two"):
                await operator.post("/api/v1/ledger/mint", json={"to": key, "amount": 5, "key": key})
            for _ in range(3):
                made = await operator.post("/api/v1/jobs", json=JOB)
                await self.world.finished(self.world.core.job(made.json()["id"]))
            invited = (await operator.post("/api/v1/invites", json={"uses": 3})).json()["token"]
            for name in ("n1", "n2", "n3"):
                await operator.post("/api/v1/nodes", json={"token": invited, "node": name, "secret": "s" * 43})
        self.admin = await self.bearer("ada")
        async with self.call(self.admin) as ada:
            tokens = [await ada.post("/api/v1/tokens", json={"label": label}) for label in "abc"]
        self.ids = {
            "job": made.json()["id"],
            "node": "n1",
            "account": "zoe",
            "token": tokens[0].json()["token"]["id"],
            "kind": "models",
            "dataset": "toy",
            "round": "1",
            "name": "one",
            "digest": "0" * 64,
        }

    async def state(self) -> tuple[Any, ...]:
        """What a refused request must leave as it is."""
        ledger = await self.world.ledger.head()
        async with self.call(self.admin) as ada:
            names = [account["name"] for account in (await ada.get("/api/v1/accounts")).json()["items"]]
            tokens = len((await ada.get("/api/v1/tokens")).json()["items"])
        return self.world.core.journal.offset, ledger.hash, names, tokens

    def every_operation(self) -> dict[tuple[str, str], dict[str, Any]]:
        paths = self.app.openapi()["paths"]
        return {(m.upper(), path): op for path, ops in paths.items() for m, op in ops.items() if m in METHODS}

    def at(self, path: str) -> str:
        """The path with ids filled in: those of `fill`, or of nothing."""
        return re.sub(r"{(\w+)}", lambda found: self.ids.get(found[1], "some"), path)

    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Those of the GROUPS; the market, the chain and uploaded tables have tests of their own."""
        return {call: op for call, op in self.every_operation().items() if GROUPS.issuperset(op["tags"])}


@pytest.fixture
async def place(tmp_path):
    world = World(tmp_path)
    await world.up()
    await world.join("worker", 0)
    place = Place(world)
    await place.fill()
    yield place
    await world.close()


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    assert answer.json()["title"]
    return answer.json()["detail"]


# -- reading ---------------------------------------------------------------------------------------------


async def test_every_list_comes_in_pages_that_make_up_the_whole(place):
    seen = 0
    async with place.call(place.admin) as ada:
        for (method, path), operation in place.operations().items():
            content = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
            if method != "GET" or "Page_" not in json.dumps(content.get("schema", {})):
                continue
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            assert {"limit", "after"} <= names, path
            where = path.format(**place.ids)
            whole = (await ada.get(where, params={"limit": 1000})).json()
            assert whole.get("next") is None, path
            for limit in (0, 1001):
                assert (await ada.get(where, params={"limit": limit})).status_code == 422, path
            parts: list[Any] = []
            after: dict[str, str] = {}
            while True:
                page = (await ada.get(where, params={"limit": 2, **after})).json()
                assert len(page["items"]) <= 2, path
                parts += page["items"]
                if page.get("next") is None:
                    break
                after = {"after": page["next"]}
            assert _stable(parts) == _stable(whole["items"]), path
            seen += len(whole["items"]) > 1
    assert seen >= 15


def _stable(items: list[Any]) -> list[Any]:
    """Without what the clock changes between two requests."""
    moving = ("last_seen", "cpu", "memory_used")
    return [{k: v for k, v in item.items() if k not in moving} if isinstance(item, dict) else item for item in items]


async def test_every_answer_to_get_has_an_etag_and_is_not_sent_again(place):
    unchanged = 0
    async with place.call(place.admin) as ada:
        for method, path in place.operations():
            if method != "GET" or path in FILES or "/rewards" in path:
                continue
            first = await ada.get(path.format(**place.ids))
            assert first.status_code == 200, (path, first.text)
            etag = first.headers["etag"]
            again = await ada.get(path.format(**place.ids), headers={"if-none-match": etag})
            if again.headers["etag"] == etag:  # some say what time it is, or what a machine is doing
                assert (again.status_code, again.content) == (304, b""), path
                unchanged += 1
    assert unchanged >= 25


# -- writing ---------------------------------------------------------------------------------------------

ONCE: dict[str, dict[str, Any] | None] = {
    "/api/v1/jobs": JOB,
    "/api/v1/jobs/check": JOB,
    "/api/v1/jobs/forecast": JOB,
    "/api/v1/jobs/{live}/pause": None,
    "/api/v1/jobs/{live}/resume": None,
    "/api/v1/jobs/{live}/stop": {"reason": "enough"},
    "/api/v1/invites": {"uses": 2},
    "/api/v1/nodes": {"node": "new"},
    "/api/v1/nodes/register": {"node_id": "other"},
    "/api/v1/nodes/{node}/drain": None,
    "/api/v1/nodes/{node}/undrain": None,
    "/api/v1/datasets/{dataset}/preflight": None,
    "/api/v1/ledger/mint": {"to": "three", "amount": 7, "key": "three"},
    "/api/v1/ledger/accounts/{name}/transfer": {"to": "two", "amount": 1, "key": "moved"},
    "/api/v1/tokens": {"label": "once"},
    "/api/v1/training/start": JOB,
    "/api/v1/training/stop": {},
    "/api/jobs": JOB,
    "/api/jobs/{live}/start": None,
    "/api/jobs/{live}/stop": None,
    "/auth/signup": {"name": "new", "password": PASSWORD, "role": "viewer"},
}
"""Every POST that changes something, but for the KEYLESS."""

STARTS = {"/api/v1/jobs", "/api/v1/training/start", "/api/v1/jobs/{live}/resume", "/api/jobs/{live}/start"}
"""What lets a job run, which goes on by itself."""

KEYLESS = {
    "/auth/signin": "whoever calls is not known yet",
    "/auth/refresh": "the token is its own key: it works once",
    "/auth/revoke": "ending a session twice ends it",
    "/auth/password": "the current password is needed, and is another one then",
    "/api/v1/invites/check": "changes nothing",
    "/api/v1/ledger/accounts/{name}/claim": "its key stands in the ledger: see test_rewards",
}


async def test_every_post_with_a_key_is_done_once(place):
    posts = {path for method, path in place.operations() if method == "POST"}
    known = {path.replace("{live}", "{job}") for path in ONCE}
    assert posts == known | KEYLESS.keys(), "say here what a POST needs to be done once, or why it takes no key"
    async with place.call(place.admin) as ada:
        for number, (path, body) in enumerate(ONCE.items()):
            live = (await ada.post("/api/v1/jobs?paused=true", json=JOB)).json()["id"] if "{live}" in path else ""
            where, key = path.format(**place.ids, live=live), {"idempotency-key": f"key-{number}"}
            first = await ada.post(where, json=body, headers=key)
            assert first.status_code in (200, 201), (path, first.text)
            if path in STARTS:
                await place.world.finished(place.world.core.job(first.json()["id"]))
            before = await place.state()
            again = await ada.post(where, json=body, headers=key)
            assert again.status_code == first.status_code, path
            assert await place.state() == before, path
            if path != "/api/v1/jobs":  # shows the job as it is by now
                assert again.content == first.content, path
            if body:
                other = await ada.post(where, json={**body, "seed": 9}, headers=key)
                assert other.status_code in (409, 422), path
                assert problem(other)


# -- bad input -------------------------------------------------------------------------------------------

BODIES = {
    "malformed": (b'{"name":', "application/json", 400, "not JSON"),
    "no text": (b"\xff\xfe", "application/json", 400, "not JSON"),
    "nested": (b"[" * 100_000, "application/json", 400, "not JSON"),
    "a list": (b"[1]", "application/json", 422, "expected a JSON object, came list"),
    "a form": (b"name=ada", "application/x-www-form-urlencoded", 415, "expected Content-Type application/json"),
    "too large": (b" " * (MAX_BODY + 1), "application/json", 413, "has more"),
    "an unknown field": (b'{"no such field": 1}', "application/json", 422, "no such field"),
}
LENIENT = {"/api/v1/jobs/{job}/stop", "/api/jobs/{job}/stop"}
"""What other systems send along when they stop a job is not looked at."""


async def test_a_bad_body_is_refused_everywhere_and_changes_nothing(place):
    before, tried = await place.state(), 0
    async with place.call(place.admin) as ada:
        for (method, path), operation in place.every_operation().items():
            if "application/json" not in operation.get("requestBody", {}).get("content", {}):
                continue
            for kind, (content, media, status, said) in BODIES.items():
                if kind == "an unknown field" and path in LENIENT:
                    continue
                where, headers = place.at(path), {"content-type": media}
                answer = await ada.request(method, where, content=content, headers=headers)
                assert answer.status_code == status, (kind, method, path, answer.text)
                assert said in problem(answer), (kind, method, path)
                tried += 1
    assert tried >= 18 * len(BODIES)
    assert await place.state() == before


UNKNOWN = {"job": "none", "node": "none", "account": "none", "token": "none", "kind": "none", "dataset": "none"}
UNKNOWN |= {"round": "99", "digest": "f" * 64, "organisation": "none"}
ANYBODY = {"/api/v1/ledger/accounts/{name}" + call for call in ("", "/claim", "/transfer")}
"""An account of the ledger that nobody has heard of holds nothing: that is an answer."""


async def test_an_unknown_id_is_named_everywhere_and_changes_nothing(place):
    before, tried = await place.state(), 0
    bodies = {"PATCH": {"role": "viewer"}}
    async with place.call(place.admin) as ada:
        for method, path in place.operations():
            if "{" not in path or path in ANYBODY or "/blobs/" in path:
                continue
            body = {"jobs": 3} if "/organisations/" in path else bodies.get(method)
            answer = await ada.request(method, path.format_map(UNKNOWN), json=body)
            assert answer.status_code == 404, (method, path, answer.text)
            assert "none" in problem(answer), (method, path)
            tried += 1
    assert tried >= 25
    assert await place.state() == before


async def test_every_call_asks_who_calls_and_takes_the_right_role(place):
    zoe, oz = await place.bearer("zoe"), await place.bearer("oz")
    before, tried = await place.state(), 0
    async with place.call() as stranger, place.call(zoe) as viewer, place.call(oz) as operator:
        for method, path in place.every_operation():
            where = place.at(path)
            if OPEN.fullmatch(f"{method} {where}"):
                continue
            refused = await stranger.request(method, where)
            assert refused.status_code == 401, (method, path)
            assert refused.headers["www-authenticate"] == "Bearer"
            role = needed_role(f"{method} {where}")
            for by, ranks in ((viewer, ("viewer",)), (operator, ("viewer", "operator"))):
                if role not in ranks:
                    answer = await by.request(method, where)
                    assert answer.status_code == 403, (method, path)
                    assert "is a" in problem(answer), (method, path)
            tried += 1
    assert tried > len(place.operations())
    assert await place.state() == before


def _forged(**claims: object) -> str:
    standard = {"sub": "ada", "sid": "x", "aud": "tutti", "exp": int(time.time()) + 900}
    return jwt.encode({**standard, **claims}, "another key, and one that is long enough for HS256", "HS256")


async def test_a_bad_token_is_refused_and_changes_nothing(place):
    good = place.admin["authorization"].removeprefix("Bearer ")
    head, claims, signature = good.split(".")
    key = place.app.state.identify._key
    told = jwt.decode(good, key, ["HS256"], audience="tutti")
    tokens = {
        "tampered": f"{head}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        "forged": _forged(sid=told["sid"]),
        "expired": jwt.encode({**told, "exp": int(time.time()) - 1}, key, "HS256"),
        "unsigned": jwt.encode(told, None, "none"),
        "garbage": "a.b.c",
        "empty": "",
        "half": TOKEN[:5],
    }
    before = await place.state()
    for kind, token in tokens.items():
        async with place.call({"authorization": f"Bearer {token}"}) as somebody:
            for method, path in (("GET", "/api/v1/jobs"), ("DELETE", "/api/v1/nodes/n1")):
                answer = await somebody.request(method, path)
                assert answer.status_code == 401, (kind, answer.text)
                assert "sign in" in problem(answer), kind
    assert await place.state() == before


async def test_a_form_sent_twice_counts_once(place):
    """Without a key too, where it cannot have been meant twice."""
    async with place.call(place.admin) as ada:
        twice = [
            ("/auth/signup", {"name": "twin", "password": PASSWORD, "role": "viewer"}, (201, 409)),
            ("/api/v1/nodes", {"node": "twin"}, (201, 409)),
            ("/api/v1/ledger/mint", {"to": "twin", "amount": 3, "key": "twin"}, (200, 200)),
        ]
        for path, body, statuses in twice:
            answers = [await ada.post(path, json=body) for _ in range(2)]
            assert tuple(answer.status_code for answer in answers) == statuses, path
        assert (await ada.get("/api/v1/ledger/accounts/twin")).json()["free"] == 3
        job = (await ada.post("/api/v1/jobs?paused=true", json=JOB)).json()["id"]
        stops = [await ada.post(f"/api/v1/jobs/{job}/stop") for _ in range(2)]
        assert [answer.status_code for answer in stops] == [200, 409]
        assert "is stopped" in problem(stops[1])
