"""A coordinator on PostgreSQL and S3: `kill -9`, its data directory lost, and the same model as on embedded stores."""

import asyncio
import contextlib
import secrets
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from support.commands import DEADLINE, running, tutti
from support.ports import free_port
from support.services import S3_KEYS, bucket, database
from tutti.adapters.identities.ed25519 import Ed25519Key
from tutti.adapters.ledgers.signed import SignedLedger
from tutti.adapters.ledgers.sqlite import SqliteEntries
from tutti.apps.bootstrap import CoordinatorSettings, coordinator
from tutti.apps.client import Client
from tutti.core.errors import UserError
from tutti.domain.ledger import Mint, Order

SPEC = {
    "dataset": "digits",
    "model": "mlp:hidden=64",
    "name": "stores",
    "rounds": 6,
    "seed": 3,
    "training": {"lr": 0.05, "batch_size": 32},
    "cohort": {"min_nodes": 2, "grace": 60},
}


@pytest.fixture
async def stores(monkeypatch):
    async with database() as url, bucket(monkeypatch) as place:
        yield {"--database": url, "--blobs": place}


def trained(folder: Path, *options: object, interrupted: bool = False) -> str:
    """The digest of the model that two nodes make."""
    port = free_port()
    up = ["up", "--port", port, "--data-dir", folder / "data", *options]
    with ExitStack() as stack, Client(f"http://127.0.0.1:{port}") as client:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(running(*up, cwd=folder, **S3_KEYS))
        link = client.invite(uses=2).link
        for name in ("n0", "n1"):
            data = f"digits:part={name[1]}/2"
            join = ["join", link, "--data", data, "--name", name, "--state-dir", folder / name]
            stack.enter_context(running(*join, cwd=folder))
        job = client.submit(SPEC)
        if interrupted:
            for event in client.follow(job.id):
                if event.type == "RoundClosed" and event.data["round"] == 3:
                    break
            client.mint("bank", 100, key="first")
            first.close()
            shutil.rmtree(folder / "data")
            stack.enter_context(running(*up, cwd=folder, **S3_KEYS))
            assert client.mint("bank", 100, key="first").free == 100  # it is in the ledger already
        done = client.wait(job.id)
        assert done.status == "completed"
        return done.model_digest


def test_everything_that_lasts_is_in_the_stores(tmp_path, stores):
    (here := tmp_path / "embedded").mkdir()
    (there := tmp_path / "stores").mkdir()
    (there / "ledger-key").write_text(secrets.token_hex(32))
    options = [*(part for pair in stores.items() for part in pair), "--ledger-key-file", there / "ledger-key"]
    assert trained(there, *options, interrupted=True) == trained(here)


def test_stores_that_do_not_answer_end_the_start_with_a_reason(tmp_path, stores):
    no_database = tutti("up", "--database", "postgresql://me:secret@127.0.0.1:1/tutti", cwd=tmp_path)
    assert (no_database.returncode, "look after the server" in no_database.stderr) == (6, True)
    no_bucket = tutti("up", "--blobs", "s3://tutti-none?endpoint=http://127.0.0.1:39400", cwd=tmp_path, **S3_KEYS)
    assert (no_bucket.returncode, "make it first" in no_bucket.stderr) == (2, True)
    assert "secret" not in no_database.stderr
    assert "Traceback" not in no_database.stderr + no_bucket.stderr


async def test_a_standby_with_another_ledger_key_says_so_at_its_start(tmp_path, stores):
    """And not when it takes over: nobody looks then."""
    for name in ("ours", "other"):
        (tmp_path / name).write_text(secrets.token_hex(32))
    owner = CoordinatorSettings(
        data_dir=tmp_path / "a", database=stores["--database"], ledger_key_file=tmp_path / "ours"
    )
    other = replace(owner, standby=True, blobs=stores["--blobs"], ledger_key_file=tmp_path / "other")
    async with coordinator(owner, 0, "a token"), asyncio.timeout(DEADLINE):
        with pytest.raises(UserError, match=r"founded with the key .* give every coordinator the same"):
            async with coordinator(replace(other, data_dir=tmp_path / "b"), 0, "a token"):
                pass
    with pytest.raises(UserError, match="founded with the key"):
        async with coordinator(replace(owner, ledger_key_file=tmp_path / "other"), 0, "a token"):
            pass


async def test_files_that_a_database_leaves_unread_are_told_of(tmp_path, stores, caplog):
    """And none that a coordinator with a database makes itself."""
    (key := tmp_path / "key").write_text(secrets.token_hex(32))
    for name, place in (("old", ""), ("new", stores["--database"]), ("new", stores["--database"])):
        settings = CoordinatorSettings(data_dir=tmp_path / name, database=place, ledger_key_file=key)
        async with coordinator(settings, 0, "a token"):
            pass
    assert "nobody reads" not in caplog.text
    entries = SqliteEntries(tmp_path / "old" / "ledger.sqlite")
    ledger = await SignedLedger(entries, Ed25519Key.at(key), lambda: 2_000_000_000_000).open()
    await ledger.post(Order("first", Mint(to="ada", amount=7)))
    await ledger.close()
    async with coordinator(replace(settings, data_dir=tmp_path / "old"), 0, "a token"):
        pass
    assert "old has log.sqlite, accounts.sqlite, ledger.sqlite, which nobody reads with --database" in caplog.text
