"""All members of a ring are killed at once, and started again."""

import asyncio
import json
from contextlib import ExitStack
from signal import SIGKILL

from support.commands import running
from support.commands import tutti as command
from support.ports import free_port
from support.ring_processes import Ring

ROUNDS = 60


def test_a_job_is_finished_though_all_members_are_killed_at_once(tmp_path):
    with ExitStack() as stack:
        port = free_port()
        ring = Ring(
            tmp_path, stack, port, stack.enter_context(running("ring", "supernode", "--port", port, cwd=tmp_path))
        )
        ports = [free_port() for _ in range(3)]
        for each in ports:
            ring.start(each)
        ring.until_all_are_there()
        train = ("ring", "train", "127.0.0.1", port, "--data", "digits", "--model", "linear", "--rounds", ROUNDS)
        detached = command(*train, "--seed", "3", "--detach", "--json", cwd=tmp_path)
        assert detached.returncode == 0, detached.stderr
        job = json.loads(detached.stdout)["job"]
        for rounds in (3, 6):
            asyncio.run(
                ring.until(lambda views: any(j.id == job and j.rounds_done >= rounds for v in views for j in v.jobs))  # noqa: B023
            )
            for member in ring.members.values():
                member.process.send_signal(SIGKILL)
            for member in ring.members.values():
                member.process.wait()
            for each in ports:
                ring.start(each)
        fetched = command("ring", "result", job, "127.0.0.1", port, "--json", cwd=tmp_path)
        assert fetched.returncode == 0, fetched.stderr
        assert json.loads(fetched.stdout)["rounds"] == ROUNDS
