"""The market by way of a broker and a bucket: nobody reaches anybody else, and jobs are done and paid all the same."""

import asyncio
import io
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from support.commands import running
from support.services import S3_KEYS, bucket, coordinator_uid
from tutti.adapters.fabrics.amqp import Address
from tutti.apps.client import Client


async def test_workers_come_by_a_broker_and_a_bucket_too(tmp_path, monkeypatch):
    async with bucket(monkeypatch) as place, coordinator_uid() as address:
        await asyncio.to_thread(work, tmp_path, place, address)


def work(folder: Path, place: str, address: Address) -> None:
    broker = f"{address.url}?coordinator={address.uid}"
    with ExitStack() as stack:
        up = ("up", "--port", 0, "--data-dir", folder / "data", "--broker", broker, "--blobs", place)
        client = stack.enter_context(Client(stack.enter_context(running(*up, cwd=folder, **S3_KEYS)).ready["url"]))
        token = client.invite(uses=2).link.partition("#")[2]
        for name in ("n0", "n1"):
            client.mint(f"node:{name}", 150, key=name)
            options = ("--name", name, "--state-dir", folder / name, "--worker", "--stake", 150)
            stack.enter_context(running("join", f"{broker}#{token}", *options, cwd=folder))
        client.market.register_client("alice", 100)
        file = io.BytesIO()
        np.savez(file, x=np.random.default_rng(0).random((20_000, 8)))  # more than a message carries
        data = client.market.upload(file.getvalue()).data
        job = client.market.submit("alice", "kmeans", 20, data=data, replicas=2).job_id
        done = client.market.wait(job)
        assert done.status == "verified", done
        assert {client.account(f"node:{name}").free for name in ("n0", "n1")} == {10}
        assert client.market.client("alice").balance == 80
        assert len(client.market.result(job).values["centers"]) == 3
