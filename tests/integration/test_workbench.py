"""Models made and measured for the coordinator, in a thread and in a process of their own."""

import os
import select
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.commands import DEADLINE, first_line
from tutti.adapters.workbench import DEATHS, Bench, OwnProcess, ThisProcess
from tutti.core.errors import StorageError, TuttiError, UserError
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema
from tutti.ports import Workbench
from tutti.wire import tensors

pytest.importorskip("torch", reason="module:entry needs pip install 'tutti[torch]'")
pytestmark = pytest.mark.timeout(120)

TABLE = DataSchema("classification", (5,), 3)
DIGITS = DataSchema("classification", (64,), 10)

MODULES = """
import os
from torch import nn

def fine() -> nn.Module:
    return nn.Linear(5, 3)

def leaves() -> nn.Module:
    raise SystemExit("I am off")

def dies() -> nn.Module:
    os._exit(1)

def works_for_ever() -> nn.Module:
    print(os.getpid(), flush=True)
    while True:
        pass
"""

COORDINATOR = """
import asyncio, sys
from pathlib import Path
from tutti.adapters.workbench import Bench, OwnProcess
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema

async def main(entry, module, folder):
    table = DataSchema("classification", (5,), 3)
    await Bench(OwnProcess(), [module]).initial(Choice("module", {"entry": entry}), table, 1, Path(folder) / "initial")

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A module that this process, and those that it starts, can import."""
    folder = tmp_path_factory.mktemp("house")
    name = f"workshop_{os.getpid()}"
    (folder / f"{name}.py").write_text(textwrap.dedent(MODULES))
    (folder / f"{name}_trap.py").write_text("raise SystemExit('imported')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield name


@pytest.fixture(params=[ThisProcess, OwnProcess])
async def bench(request: pytest.FixtureRequest, house: str) -> AsyncIterator[Workbench]:
    bench = Bench(request.param(), [f"{house}*"])
    yield bench
    await bench.close()


def entry(house: str, name: str) -> Choice:
    return Choice("module", {"entry": f"{house}:{name}"})


async def test_makes_and_measures_models(bench: Workbench, house: str, tmp_path: Path) -> None:
    await bench.initial(entry(house, "fine"), TABLE, 1, tmp_path / "a")
    assert tensors.decode((tmp_path / "a").read_bytes()).layout.size == 18
    await bench.initial(Choice("linear"), DIGITS, 1, tmp_path / "b")
    metrics = await bench.evaluate(Choice("linear"), DIGITS, Choice("digits", {"split": "test"}), tmp_path / "b")
    assert metrics["loss"] > 0


async def test_whatever_a_model_raises_is_its_own_mistake(bench: Workbench, house: str, tmp_path: Path) -> None:
    for model, said in (
        (entry(house, "leaves"), "the model cannot be used: SystemExit: I am off"),
        (entry(f"{house}_trap", "x"), "the model cannot be used: SystemExit: imported"),
        (entry(house, "os"), "has a module, not a callable"),
    ):
        with pytest.raises(UserError, match=said):
            await bench.initial(model, TABLE, 1, tmp_path / "a")
    await bench.initial(entry(house, "fine"), TABLE, 1, tmp_path / "a")


async def test_a_disk_that_fails_is_not_the_models_mistake(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        await bench.initial(Choice("linear"), TABLE, 1, tmp_path / "nowhere" / "a")


@pytest.mark.parametrize("place", [ThisProcess, OwnProcess])
async def test_a_module_that_the_owner_did_not_list_is_not_imported(
    place: type[OwnProcess], house: str, tmp_path: Path
) -> None:
    bench, trap = Bench(place()), entry(f"{house}_trap", "x")
    with pytest.raises(UserError, match=f"module '{house}_trap': start it with `tutti up --allow-module {house}_trap`"):
        bench.check(trap)
    with pytest.raises(UserError, match="does not let jobs import"):
        await bench.initial(trap, TABLE, 1, tmp_path / "a")
    with pytest.raises(UserError, match="does not let jobs import"):
        await bench.evaluate(trap, TABLE, Choice("digits"), tmp_path / "a")
    bench.check(Choice("mlp"))
    await bench.close()


async def test_a_process_that_dies_of_one_request_again_and_again_is_the_requests_mistake(
    house: str, tmp_path: Path
) -> None:
    bench = Bench(OwnProcess(), [house])
    for attempt in range(2 * DEATHS):
        if attempt == 1:  # another request in between has nothing to do with it
            await bench.initial(entry(house, "fine"), TABLE, 1, tmp_path / "a")
        with pytest.raises(TuttiError, match="died") as caught:
            await bench.initial(entry(house, "dies"), TABLE, 1, tmp_path / f"try-{attempt}")
        assert isinstance(caught.value, UserError) == ((attempt + 1) % DEATHS == 0)
    await bench.close()


def test_nothing_is_left_behind_of_a_coordinator_that_is_killed_while_the_process_works(
    house: str, tmp_path: Path
) -> None:
    script = tmp_path / "coordinator.py"
    script.write_text(COORDINATOR)
    command = [sys.executable, str(script), f"{house}:works_for_ever", house, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as coordinator:
        worker = os.pidfd_open(int(first_line(coordinator)))
        coordinator.kill()
        ended, _, _ = select.select([worker], [], [], DEADLINE)
        os.close(worker)
    assert ended
