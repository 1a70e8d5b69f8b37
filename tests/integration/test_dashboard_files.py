"""How the dashboard and the browser node are served: whole, small, safe to cache, and open to who must sign in."""

import gzip
import re

import pytest

from support.served import OPEN_TO_THE_NETWORK, app_of, caller
from support.worlds import World, toy_spec
from tutti.adapters.browser.kernel import WASM
from tutti.adapters.identities.secp256k1 import Secp256k1Key
from tutti.apps.api.dashboard import FOLDER, SMALL
from tutti.services.proofs import statement

SCRIPT_LIMIT, NODE_LIMIT = 150_000, 300_000


@pytest.fixture
async def stranger(tmp_path):
    world = World(tmp_path)
    await world.up()
    async with caller(app_of(world, OPEN_TO_THE_NETWORK)) as client:
        yield client
    await world.close()


def assets(page: str) -> set[str]:
    """A page's files: those that it names, and those that these name."""
    found = set(re.findall(r"/assets/([\w.-]+)", (FOLDER / page).read_text()))
    for name in list(found):
        found |= set(re.findall(r"[\w-]+\.js", (FOLDER / "assets" / name).read_text())) & ALL
    return found


ALL = {file.name for file in (FOLDER / "assets").iterdir()}
PAGES = {"index.html": SCRIPT_LIMIT, "node.html": NODE_LIMIT}


def test_the_pages_name_every_asset_and_their_scripts_are_small():
    assert assets("index.html") | assets("node.html") == ALL
    for page, limit in PAGES.items():
        files = [(FOLDER / "assets" / name).read_bytes() for name in assets(page)]
        files += [WASM.read_bytes()] if page == "node.html" else []
        size = sum(len(gzip.compress(file)) for file in files)
        print(f"{page}: {size:,} bytes with gzip, of at most {limit:,}")
        assert size <= limit


@pytest.mark.parametrize("path", ["/", "/dashboard", "/dashboard/job/digits-1"])
async def test_every_address_is_the_same_page_under_a_strict_policy(stranger, path):
    answer = await stranger.get(path)
    assert (answer.status_code, answer.text) == (200, (FOLDER / "index.html").read_text())
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    same = await stranger.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


@pytest.mark.parametrize("path", ["/join", "/node"])
async def test_the_browser_node_is_a_page_that_may_run_the_kernel_and_nothing_inline(stranger, path):
    answer = await stranger.get(path)
    assert (answer.status_code, answer.text) == (200, (FOLDER / "node.html").read_text())
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-" not in policy
    kernel = await stranger.get("/node-kernel.wasm")
    assert (kernel.headers["content-type"], kernel.content) == ("application/wasm", WASM.read_bytes())
    for name in ("icon-192.png", "icon-512.png"):
        icon = await stranger.get(f"/{name}")
        assert (icon.headers["content-type"], icon.content) == ("image/png", (FOLDER / name).read_bytes())
    manifest = await stranger.get("/node.webmanifest")
    assert manifest.headers["content-type"] == "application/manifest+json"
    assert manifest.json()["start_url"] == "/node"


@pytest.mark.parametrize("path", ["/api/v1/browser/here", "/api/v1/browser/wanted", "/api/v1/browser/assigned/digits"])
async def test_rows_to_try_out_with_are_for_nodes(stranger, path):
    assert (await stranger.get(path)).status_code == 401
    assert (await stranger.get(path, headers={"authorization": "Bearer ada:wrong"})).status_code == 403


async def test_nodes_are_given_parts_of_what_jobs_here_are_on_and_of_nothing_else(tmp_path):
    world = World(tmp_path)
    await world.up()
    secret = await world.core.members.admit(await world.core.members.invite(), "ada")
    async with caller(app_of(world, OPEN_TO_THE_NETWORK), {"authorization": f"Bearer ada:{secret}"}) as node:
        items = (await node.get("/api/v1/browser/wanted")).json()["items"]
        assert [(item["name"], item["assigned"]) for item in items] == [("digits", True)]
        assert (await node.get("/api/v1/browser/assigned/digits")).status_code == 200
        other = await node.get("/api/v1/browser/assigned/diabetes")
        assert (other.status_code, other.json()["detail"]) == (
            404,
            "there is no bundled data set 'diabetes' to be given out",
        )
        assert (await node.get("/api/v1/browser/here")).status_code == 409  # it has no connection
        answers = [await node.get("/api/v1/browser/assigned/digits") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 429]  # two were asked for above
        assert "asks too often" in answers[-1].json()["detail"]
    await world.close()


async def test_a_set_whose_files_are_not_here_is_not_given_out(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTTI_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path)
    await world.up()
    secret = await world.core.members.admit(await world.core.members.invite(), "ada")
    await world.core.submit(toy_spec(dataset="mnist", model="cnn"))
    async with caller(app_of(world, OPEN_TO_THE_NETWORK), {"authorization": f"Bearer ada:{secret}"}) as node:
        refused = await node.get("/api/v1/browser/assigned/mnist")
    said = "the coordinator has no rows of 'mnist' to give out: take some of your own"
    assert (refused.status_code, refused.json()["detail"]) == (404, said)
    await world.close()


async def test_what_a_node_with_a_key_signed_for_one_request_is_good_for_no_other(tmp_path):
    world, key = World(tmp_path), Secp256k1Key(bytes(32))
    await world.up()
    public = f"secp256k1:{key.public}"
    await world.core.members.admit(await world.core.members.invite(), "ada", public)

    def signed(use: str, challenge: str, now: int) -> dict[str, str]:
        signature = key.sign(statement("ada", challenge, now, use)).hex()
        return {"authorization": f"Bearer ada:{public}:{challenge}:{now}:{signature}"}

    async with caller(app_of(world, OPEN_TO_THE_NETWORK)) as node:
        asked = (await node.get("/api/v1/browser/challenge")).json()  # anybody may
        path, heard = "/api/v1/browser/wanted", signed("GET /api/v1/browser/wanted", **asked)
        for method, other in (("GET", "/api/v1/browser/here"), ("PUT", f"/api/v1/blobs/{'0' * 64}")):
            refused = await node.request(method, other, headers=heard)
            assert refused.status_code == 403
            assert f"for `{method} {other}`" in refused.json()["detail"]
        assert (await node.get(path, headers=signed("device:register", **asked))).status_code == 403
        assert [(await node.get(path, headers=heard)).status_code for _ in range(2)] == [200, 401]
        stale = signed(f"GET {path}", **{**asked, "challenge": "0" * 16})
        assert (await node.get(path, headers=stale)).status_code == 401  # a page then asks for the challenge
    await world.close()


async def test_assets_are_packed_and_last(stranger):
    for name in (f"/assets/{name}" for name in ALL):
        answer = await stranger.get(name, headers={"accept-encoding": "gzip"})
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        if int(answer.headers["content-length"]) >= SMALL:
            assert answer.headers["content-encoding"] == "gzip"
        plain = await stranger.get(name, headers={"accept-encoding": "identity"})
        assert plain.content == answer.content == (FOLDER / name[1:]).read_bytes()
    assert (await stranger.get("/favicon.svg")).headers["content-type"] == "image/svg+xml"


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/..%2findex.html", "/assets/../index.html"])
async def test_nothing_else_is_served(stranger, path):
    assert (await stranger.get(path)).status_code in (401, 404)
