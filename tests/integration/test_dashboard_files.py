"""How the dashboard is served: the built files are whole, small, safe to cache, and open to those who must sign in."""

import gzip
import re

import pytest

from support.served import OPEN_TO_THE_NETWORK, app_of, caller
from support.worlds import World
from tutti.apps.api.dashboard import FOLDER

SCRIPT_LIMIT = 150_000


@pytest.fixture
async def stranger(tmp_path):
    world = World(tmp_path)
    await world.up()
    async with caller(app_of(world, OPEN_TO_THE_NETWORK)) as client:
        yield client
    await world.close()


def assets() -> list[str]:
    return re.findall(r"/assets/[\w.-]+", (FOLDER / "index.html").read_text())


def test_the_page_names_every_asset_and_its_script_is_small():
    assert {name.rpartition("/")[2] for name in assets()} == {file.name for file in (FOLDER / "assets").iterdir()}
    scripts = [file.read_bytes() for file in (FOLDER / "assets").glob("*.js")]
    assert sum(len(gzip.compress(script)) for script in scripts) <= SCRIPT_LIMIT


@pytest.mark.parametrize("path", ["/", "/join", "/dashboard", "/dashboard/job/digits-1"])
async def test_every_address_is_the_same_page_under_a_strict_policy(stranger, path):
    answer = await stranger.get(path)
    assert (answer.status_code, answer.text) == (200, (FOLDER / "index.html").read_text())
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    same = await stranger.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


async def test_assets_are_packed_and_last(stranger):
    for name in assets():
        answer = await stranger.get(name, headers={"accept-encoding": "gzip"})
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        plain = await stranger.get(name, headers={"accept-encoding": "identity"})
        assert plain.content == answer.content == (FOLDER / name[1:]).read_bytes()
    assert (await stranger.get("/favicon.svg")).headers["content-type"] == "image/svg+xml"


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/..%2findex.html", "/assets/../index.html"])
async def test_nothing_else_is_served(stranger, path):
    assert (await stranger.get(path)).status_code in (401, 404)
