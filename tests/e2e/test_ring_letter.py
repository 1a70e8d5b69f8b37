"""The original task: letter recognition on a ring, beside a live hub with the same seed, parts and node names."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from support.commands import running, tutti
from support.ports import free_port
from support.ring_processes import Ring, owned_rows
from support.shared_data import SHARED, needs
from tutti.adapters.fabrics.ring import node_of
from tutti.apps.nodes import load_data
from tutti.core.registry import Choice

MEMBERS = 3
LETTER = f"letter:path={SHARED / 'letter'}"
JOB = ("--model", "mlp:hidden=64", "--rounds", 3, "--seed", 5, "--epochs", 2, "--batch-size", 32, "--lr", 0.1)


def everybody(members: list[str]) -> tuple[object, ...]:
    """Rounds of all who have rows: a member with a short arc of the ring may have none."""
    holders = len(owned_rows(load_data(Choice.parse(f"{LETTER},held_out=0")), members))
    return "--nodes", holders, "--set", f"cohort.quorum={holders}", "--set", "cohort.grace=60"


def on_a_ring(folder: Path) -> tuple[list[str], str, float]:
    """The members, the model, and the error rate that the client printed."""
    with ExitStack() as stack:
        port = free_port()
        supernode = stack.enter_context(running("ring", "supernode", "--port", port, cwd=folder))
        ring = Ring(folder, stack, port, supernode)
        members = [ring.start(free_port()) for _ in range(MEMBERS)]
        ring.until_all_are_there()
        train = ("ring", "train", "127.0.0.1", port, "--data", LETTER, *JOB, *everybody(members))
        done = tutti(*train, cwd=folder)
        assert done.returncode == 0, done.stderr
        rows = load_data(Choice.parse(f"{LETTER},split=test")).held_out
        said = re.search(r"model (\w+);.*\nerror rate: ([\d.]+)% on (\d+) validation rows", done.stdout)
        assert said, done.stdout
        assert int(said[3]) == len(rows) == 4000
        return members, said[1], float(said[2]) / 100


def on_a_hub(folder: Path, members: list[str]) -> tuple[str, float]:
    """The model, and its error rate, where nodes of the same names hold the same rows."""
    whole = load_data(Choice.parse(f"{LETTER},held_out=0"))
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", 0, "--data-dir", folder / "data", cwd=folder))
        for address, rows in owned_rows(whole, members).items():
            name = node_of(address)
            np.savez(folder / f"{name}.npz", x=whole.train.x[rows], y=whole.train.y[rows])
            invited = tutti("invite", "--url", up.ready["url"], "--json", cwd=folder)
            data = f"npz:path={folder / name}.npz,name=letter,classes=26,held_out=0"
            join = ("join", json.loads(invited.stdout)["link"], "--data", data, "--name", name)
            stack.enter_context(running(*join, "--state-dir", folder / name, cwd=folder))
        job = ("run", "--url", up.ready["url"], "--dataset", "letter", *JOB, *everybody(members))
        file = folder / "hub.safetensors"
        done = tutti(*job, "--set", "evaluation.nodes=false", "--out", file, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        measured = tutti("evaluate", file, f"{LETTER},split=test", "--json", cwd=folder)
        assert measured.returncode == 0, measured.stderr
        return json.loads(done.stdout)["model_digest"], 1 - json.loads(measured.stdout)["pooled"]["accuracy"]


@pytest.mark.timeout(600)
@needs("letter")
def test_a_ring_learns_letters_as_a_hub_does(tmp_path):
    for name in ("ring", "hub"):
        (tmp_path / name).mkdir()
    members, model, error = on_a_ring(tmp_path / "ring")
    model_of_hub, error_of_hub = on_a_hub(tmp_path / "hub", members)
    assert model == model_of_hub
    assert abs(error - error_of_hub) < 0.0006  # the client prints a tenth of a percent
    assert error < 0.6
