"""A client's own program, as WebAssembly in a sandbox: it sees the table and nothing else, and stops without fuel.

WebAssembly has no way to anything that it is not given (https://webassembly.org/docs/security/), and nothing is given:
no files, no network, no clock, no chance. So it may run on a stranger's machine, and gives the same bits on all
of them (https://github.com/WebAssembly/design/blob/main/Nondeterminism.md; NaNs are made canonical here).

Nothing checks the result of any program for less than running it, so a check finds nothing: replicas, spot checks and
disputes run it again, and the bond makes up for how seldom that is (nine rewards, where a tenth is spot-checked).

What a program exports: `memory`; `take(bytes) -> address`, where the table is put; and
`run(x, y, rows, columns) -> address` of its result: how many numbers, and then these. x is the table row by row, y the
targets or 0; addresses are i32, numbers float64. A program that does not end well has the result `failed`: running it
was work, too.
"""

from base64 import b64decode
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from tutti.core.errors import UserError
from tutti.core.workload import Floats, Result, Table, Verdict, Workload, check_finite, workloads

if TYPE_CHECKING:
    import wasmtime

MEMORY = 512 << 20
STACK = 512 << 10
"""Bytes of a program's stack, whatever the version of wasmtime would give."""

MOST_NUMBERS = 1_000_000
BINARY = "AGFzbQ"
"""How base64 of a compiled module begins."""


class BadScript(UserError):
    """A program that cannot be run, or did not end well."""


def runs_here() -> bool:
    return find_spec("wasmtime") is not None


@workloads.register("script")
def script(
    code: Annotated[str, Meta(min_length=1, max_length=40_000)],
    fuel: Annotated[int, Meta(ge=1_000, le=20_000_000_000)] = 1_000_000_000,
) -> Workload:
    """What a program of the client's makes of the table: WebAssembly, as text or base64; `fuel` is instructions."""

    def admit(table: Table) -> None:
        check_finite(table, 1)
        compiled(code)

    def solve(table: Table, _: int) -> Result:
        compiled(code)
        try:
            return {"values": run(code, table, fuel), "failed": np.zeros(())}
        except BadScript:
            return {"values": np.zeros(0), "failed": np.ones(())}

    def replay(table: Table, result: Result, seed: int) -> Verdict:
        again = solve(table, seed)
        if all(np.array_equal(again[name], result[name]) for name in again):
            return Verdict(True)
        return Verdict(False, "the program gives another result")

    return Workload(
        admit=admit,
        solve=solve,
        shapes=lambda table: {"values": (-1,), "failed": ()},
        check=lambda table, result, seed, check_seed: Verdict(True),
        replay=replay,
        work=lambda n, d: float(fuel),
        detection=0.0,
        longest=MOST_NUMBERS,
    )


def run(code: str, table: Table, fuel: int) -> Floats:
    """The numbers that a program gives; raises BadScript, saying how it ended, if it gives none."""
    import wasmtime

    engine, module = compiled(code)
    store = wasmtime.Store(engine)
    store.set_fuel(fuel)
    store.set_limits(memory_size=MEMORY, table_elements=10_000, instances=1, tables=1, memories=1)
    try:
        its: Any = wasmtime.Instance(store, module, []).exports(store)
        given = [_put(store, its, values) for values in (table.x, table.y)]
        at = its["run"](store, *given, *table.x.shape) & 0xFFFF_FFFF
        count = float(_get(store, its, at, 1)[0])
        if not (count.is_integer() and 0 <= count <= MOST_NUMBERS):
            raise BadScript(f"a result has 0 to {MOST_NUMBERS} numbers, this one says {count}")
        found = _get(store, its, at + 8, int(count))
    except (wasmtime.WasmtimeError, wasmtime.Trap, IndexError) as error:
        raise BadScript(f"the program did not end well: {str(error).strip().splitlines()[-1]}") from None
    if not np.isfinite(found).all():
        raise BadScript("the result has values that are not finite")
    return found


def _put(store: "wasmtime.Store", its: Any, values: Floats | None) -> int:
    if values is None:
        return 0
    data = np.ascontiguousarray(values, np.dtype("<f8")).tobytes()
    at = int(its["take"](store, len(data)))
    if its["memory"].data_len(store) < (at & 0xFFFF_FFFF) + len(data):
        raise BadScript(f"take({len(data)}) gave an address that is not in its memory")
    its["memory"].write(store, data, at & 0xFFFF_FFFF)
    return at


def _get(store: "wasmtime.Store", its: Any, at: int, count: int) -> Floats:
    if its["memory"].data_len(store) < at + 8 * count:
        raise BadScript("the result is not in its memory")
    return np.frombuffer(bytes(its["memory"].read(store, at, at + 8 * count)), np.dtype("<f8")).astype(np.float64)


@lru_cache(maxsize=16)
def compiled(code: str) -> "tuple[wasmtime.Engine, wasmtime.Module]":
    """Raises BadScript for what is no module, lacks what is called, or asks for anything."""
    if not runs_here():
        raise BadScript(
            "programs need wasmtime, which is not installed here: pip install '.[audit]' in Tutti's sources"
        )
    import wasmtime

    config = wasmtime.Config()
    config.consume_fuel = True
    config.max_wasm_stack = STACK
    config.cranelift_nan_canonicalization = True
    config.wasm_relaxed_simd = config.wasm_threads = False
    config.signals_based_traps = (
        False  # other libraries of the process have handlers of their own for SIGSEGV and SIGILL
    )
    engine = wasmtime.Engine(config)
    try:
        data = b64decode(code, validate=True) if code.startswith(BINARY) else bytes(wasmtime.wat2wasm(code))
        module = wasmtime.Module(engine, data)
    except (wasmtime.WasmtimeError, ValueError) as error:
        raise BadScript(f"not a WebAssembly module: {str(error).strip().splitlines()[0]}") from None
    if module.imports:
        raise BadScript(f"a program is given nothing, and this one asks for {module.imports[0].name!r}")
    found = {one.name: one.type for one in module.exports}
    i32 = wasmtime.ValType.i32()
    wanted = {"take": ([i32], [i32]), "run": ([i32] * 4, [i32])}
    for name, (takes, gives) in wanted.items():
        its = found.get(name)
        if not isinstance(its, wasmtime.FuncType) or (list(its.params), list(its.results)) != (takes, gives):
            raise BadScript(f"a program exports {name}, a function of {len(takes)} i32 that gives an i32")
    if not isinstance(found.get("memory"), wasmtime.MemoryType):
        raise BadScript("a program exports its memory as `memory`")
    return engine, module
