"""Two kinds beyond tables of statistics: updates of a federated training, and programs of clients in a sandbox."""

import base64
import subprocess
import sys

import numpy as np
import pytest

from support.programs import SUMS
from tutti.core.registry import Choice
from tutti.core.workload import BadTable, Table, verify, workloads
from tutti.core.workloads.script import BadScript, run
from tutti.domain.market.rules import RULES


def script(code: str = SUMS, **options: object):
    return workloads.build(Choice("script", {"code": code, **options}))


ROWS = Table(np.arange(12.0).reshape(4, 3))


def test_a_program_computes_on_the_table_and_gives_the_same_again():
    result = script().solve(ROWS, 0)
    assert result["values"].tolist() == [18.0, 22.0, 26.0]
    assert verify(script(), ROWS, result, 0, 1, replay=True).holds
    wide = Table(np.ones((3_000, 40)))
    assert script().solve(wide, 0)["values"].tolist() == [3_000.0] * 40


def test_compiled_programs_are_taken_as_base64():
    wasmtime = pytest.importorskip("wasmtime")
    code = base64.b64encode(bytes(wasmtime.wat2wasm(SUMS))).decode()
    assert script(code).solve(ROWS, 0)["values"].tolist() == [18.0, 22.0, 26.0]


@pytest.mark.parametrize("forged", [[18.0, 22.0, 27.0], [18.0, 22.0], []])
def test_a_replay_finds_what_no_check_can(forged):
    result = {"values": np.array(forged), "failed": np.zeros(())}
    assert verify(script(), ROWS, result, 0, 1).holds
    assert not verify(script(), ROWS, result, 0, 1, replay=True).holds
    assert not verify(script(), ROWS, {"values": np.zeros(0), "failed": np.ones(())}, 0, 1, replay=True).holds
    bond = RULES.bond(10, script().detection)
    assert RULES.spot * bond >= (1 - RULES.spot) * 10  # so it does not pay


def program(body: str, take: str = "(i32.const 8)", memory: str = "1") -> str:
    return f"""(module (memory (export "memory") {memory})
      (func (export "take") (param i32) (result i32) {take})
      (func (export "run") (param i32 i32 i32 i32) (result i32) {body}))"""


BAD_ENDS = {
    "never ends": (program("(loop $l (br $l)) (i32.const 0)"), "fuel"),
    "traps": (program("unreachable"), "unreachable"),
    "recurses": (program("(call 1 (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))"), "stack|fuel"),
    "reads beyond its memory": (program("(drop (i32.load (i32.const -1))) (i32.const 0)"), "out of bounds"),
    "points beyond its memory": (program("(i32.const -8)"), "not in its memory"),
    "counts too many": (program("(f64.store (i32.const 8) (f64.const 1e300)) (i32.const 8)"), "numbers"),
    "gives no numbers": (
        program("(f64.store (i32.const 16) (f64.const nan)) (f64.store (i32.const 8) (f64.const 1)) (i32.const 8)"),
        "finite",
    ),
    "takes the table nowhere": (program("(i32.const 0)", take="(i32.const 65530)"), "take"),
    "wants all memory": (program("(i32.const 0)", memory="60000"), "memory"),
}


@pytest.mark.parametrize("name", BAD_ENDS)
def test_a_program_that_does_not_end_well_is_stopped_and_its_worker_is_paid(name):
    code, said = BAD_ENDS[name]
    with pytest.raises(BadScript, match=said):
        run(code, ROWS, 100_000)
    its = script(code, fuel=100_000)
    result = its.solve(ROWS, 0)
    assert (result["failed"], len(result["values"])) == (1.0, 0)
    assert verify(its, ROWS, result, 0, 1, replay=True).holds


def test_programs_end_badly_whatever_the_process_does_about_signals():
    """Libraries that catch SIGSEGV and SIGILL, to print where a process crashes, come before and after."""
    program = (
        "import faulthandler, numpy as np\n"
        "from tutti.core.workload import Table\n"
        "from tutti.core.workloads.script import BadScript, run\n"
        f"for code, _ in {BAD_ENDS!r}.values():\n"
        "    try:\n"
        "        run(code, Table(np.ones((2, 2)), None), 100_000)\n"
        "    except BadScript:\n"
        "        faulthandler.disable()\n"
        "        faulthandler.enable()\n"
        "        print('survived')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.count("survived")) == (0, len(BAD_ENDS)), ran.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("(module", "not a WebAssembly module"),
        ("import os", "not a WebAssembly module"),
        ("AGFzbQ==", "not a WebAssembly module"),
        (
            '(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))',
            "is given nothing",
        ),
        ('(module (memory (export "memory") 1))', "exports take"),
        (SUMS.replace('(export "memory")', ""), "exports its memory"),
        (SUMS.replace('"run"', '"main"'), "exports run"),
    ],
)
def test_what_is_no_program_or_asks_for_anything_is_refused_before_anybody_is_paid(code, said):
    with pytest.raises(BadScript, match=said):
        script(code).admit(ROWS)


# -- training ----------------------------------------------------------------------------------------


def training(**options: object):
    return workloads.build(Choice("training", options))  # type: ignore[arg-type]


def lumps(seed: int = 0, n: int = 300) -> Table:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return Table(rng.standard_normal((n, 2)) + 4 * np.array([[0, 0], [1, 0], [0, 1]])[y], y.astype(np.float64))


def test_training_by_hand():
    """One step from nothing, on two rows (1, 2) with a 1 beside them: the gradient over 2 + (1 + 1) + (4 + 1)."""
    found = training(epochs=1, lr=1.0).solve(Table(np.array([[1.0], [2.0]]), np.array([3.0, 5.0])), 0)
    assert found["weights"] == pytest.approx([13 / 9, 8 / 9])
    assert found["history"].shape == (2, 2)


@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"classes": 3, "epochs": 40, "batch": 7, "lr": 1.0}])
def test_honest_training_holds_learns_and_goes_on_from_where_it_was_told_to(options):
    its, data = training(**options), lumps()
    first = its.solve(data, 1)
    for seed in range(10):
        assert verify(its, data, first, 1, seed, replay=True).holds
    on = Table(data.x, data.y, first["weights"])
    second = its.solve(on, 2)
    assert float(second["loss"]) < float(first["loss"])
    assert verify(its, on, second, 2, 0).holds
    assert not verify(its, data, second, 2, 0).holds  # from other weights than were given


def test_no_rounding_adds_up_on_a_long_run_at_the_highest_rate():
    """Two runs that begin a little apart do not part: so another machine's rounding is no fault of an honest worker."""
    its, data = training(classes=3, epochs=200, lr=1.0, batch=5), lumps()
    one = its.solve(data, 0)["weights"]
    other = its.solve(Table(data.x * (1 + 1e-14), data.y), 0)["weights"]
    assert np.abs(one - other).max() < 1e-9


def wrong(name: str, result: dict[str, np.ndarray], data: Table) -> dict[str, np.ndarray]:
    found = {key: value.copy() for key, value in result.items()}
    rng = np.random.default_rng(0)
    match name:
        case "no work":
            found["history"][:] = found["history"][0]
            found["weights"] = found["history"][-1].copy()
        case "another end":
            found["history"][-1] += 1e-3
            found["weights"] = found["history"][-1].copy()
        case "weights of its own":
            found["weights"] = rng.standard_normal(found["weights"].shape)
        case "a better loss":
            found["loss"] = found["loss"] * 0.9
        case "some rows only":
            few = Table(data.x[:30], data.y[:30])
            found = dict(training(classes=3, epochs=50).solve(few, 1))
    return found


@pytest.mark.parametrize("name", ["no work", "another end", "weights of its own", "a better loss", "some rows only"])
def test_training_that_was_not_done_is_found(name):
    its, data = training(classes=3, epochs=5), lumps()
    result = wrong(name, dict(its.solve(data, 1)), data)
    assert not verify(its, data, result, 1, 9).holds


def test_a_forged_middle_is_found_as_often_as_is_said():
    its, data = training(classes=3, epochs=5), lumps()
    forged = {key: value.copy() for key, value in its.solve(data, 1).items()}
    forged["history"][10] += 1e-3  # two stretches are wrong by it
    caught = sum(not verify(its, data, forged, 1, seed).holds for seed in range(300))
    assert caught / 300 > its.detection
    assert not verify(its, data, forged, 1, 0, replay=True).holds


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (Table(lumps().x), "target"),
        (Table(lumps().x, lumps().y + 0.5), "a class from 0 to 2"),
        (Table(lumps().x, lumps().y, np.zeros(4)), "9 numbers"),
        (Table(lumps().x, lumps().y, np.full(9, np.nan)), "between -1e"),
        (Table(np.zeros((2, 9_000)), np.zeros(2)), "at most 10000"),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused(table, said):
    with pytest.raises(BadTable, match=said):
        training(classes=3).admit(table)
