"""The browser node's arithmetic, run here: `web/kernel` as WebAssembly gives the same bits in browsers and wasmtime.

That is what makes audits of browsers exact: whoever has the rows can compute a browser's update again.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra
from tutti.core.errors import TuttiError, UserError
from tutti.core.params import Params, Vector
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema
from tutti.ports.training import Examples

if TYPE_CHECKING:
    import wasmtime

WASM = Path(__file__).with_name("kernel.wasm")

MAX_LAYERS = 16
"""Dense layers of a network at most, as in dense.h."""

_CNN_HIDDEN, _CNN_MAPS = 512, 64
_MODEL = struct.Struct(f"<4i{MAX_LAYERS + 1}q")
_STEP = struct.Struct("<4f")
_TALLY = struct.Struct("<dq")


class NotForBrowsers(UserError):
    """A model that the kernel does not have."""


class KernelOutOfMemory(TuttiError):
    """Model and batch do not fit the 4 GB that a kernel can have."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernel trains: dense layers of these widths, after the convolutions of the CNN if `image` is given."""

    widths: tuple[int, ...]
    image: tuple[int, int, int] = (0, 0, 0)

    @property
    def packed(self) -> bytes:
        layers = len(self.widths) - 1
        return _MODEL.pack(*self.image, layers, *self.widths, *[0] * (MAX_LAYERS - layers))


def shape_of(model: Choice, data: DataSchema) -> Shape:
    """Raises NotForBrowsers, saying what there is, for a model that is not among them."""
    name, options, inputs = model.name, dict(model.options), prod(data.shape)
    if name == "cnn" and len(data.shape) == 3:
        channels, height, width = data.shape
        return Shape((_CNN_MAPS * (height // 4) * (width // 4), _CNN_HIDDEN, data.outputs), (channels, height, width))
    if name == "linear":
        return Shape((inputs, data.outputs))
    if name == "2nn":
        return Shape((inputs, 200, 200, data.outputs))
    if name == "mlp" and options.pop("activation", "relu") == "relu" and not options.pop("dropout", 0):
        hidden = options.pop("hidden", 64)
        widths = (inputs, *(hidden if isinstance(hidden, Sequence) else (hidden,)), data.outputs)
        if len(widths) <= MAX_LAYERS + 1 and not options:
            return Shape(tuple(int(width) for width in widths))
    raise NotForBrowsers(
        f"browsers have no {model}, but linear, 2nn, cnn and mlp (ReLU, no dropout, up to {MAX_LAYERS} layers)"
    )


@dataclass(frozen=True, slots=True)
class Step:
    """The step of SGD, with a pull of strength `mu` towards the parameters that training starts from."""

    lr: float
    momentum: float = 0.0
    decay: float = 0.0
    mu: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """How the parameters changed, and loss and hits summed over the batches that were tallied."""

    delta: Vector
    loss: float
    hits: int


class Kernel:
    """One instance with a memory of its own; not for several threads at once."""

    def __init__(self) -> None:
        engine, module = _compiled()
        import wasmtime

        self._store = wasmtime.Store(engine)
        report = wasmtime.FuncType([wasmtime.ValType.f32(), wasmtime.ValType.f64()], [])
        linker = wasmtime.Linker(engine)
        linker.define(self._store, "host", "report", wasmtime.Func(self._store, report, lambda done, loss: None))
        self._exports: Any = linker.instantiate(self._store, module).exports(self._store)
        self._memory: Any = self._exports["memory"]

    def train(
        self,
        shape: Shape,
        step: Step,
        params: Params,
        examples: Examples,
        batches: Sequence[NDArray[np.int64]],
        tallied: int,
    ) -> Result:
        """Train on these batches of row numbers; loss and hits are of those from number `tallied` on."""
        sizes = np.array([len(batch) for batch in batches], np.int64)
        x, y = self._rows(examples)
        given = [
            self._put(shape.packed),
            self._put(_STEP.pack(step.lr, step.momentum, step.decay, step.mu)),
            self._put(params.buffer.tobytes()),
            x,
            *((y, 0) if examples.y.ndim == 1 else (0, y)),
            self._put(np.concatenate(batches).astype(np.int64).tobytes()),
            self._put(sizes.tobytes()),
            len(sizes),
            tallied,
        ]
        delta, tally = self._take(params.buffer.nbytes), self._take(_TALLY.size)
        done = self._call("train", *given, delta, tally)
        loss, hits = _TALLY.unpack(self._get(tally, _TALLY.size))
        found = np.frombuffer(self._get(delta, params.buffer.nbytes), np.float32).copy()
        self._end(done)
        return Result(found, loss, hits)

    def predict(self, shape: Shape, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits or targets, float32 (n, outputs)."""
        out = self._take(4 * len(x) * shape.widths[-1])
        model, weights, rows = self._put(shape.packed), self._put(params.buffer.tobytes()), self._put(x.tobytes())
        done = self._call("predict", model, weights, rows, len(x), out)
        found = np.frombuffer(self._get(out, 4 * len(x) * shape.widths[-1]), np.float32).copy()
        self._end(done)
        return found.reshape(len(x), shape.widths[-1])

    def shuffle(self, seed: int, epoch: int, n: int) -> NDArray[np.int64]:
        """The order of n rows in an epoch."""
        out = self._take(8 * n)
        self._call("shuffle", _signed(seed), _signed(seed >> 32), epoch, n, out)
        found = np.frombuffer(self._get(out, 8 * n), np.int64).copy()
        self._end(1)
        return found

    def blake3(self, data: bytes) -> bytes:
        at, out = self._put(data), self._take(32)
        self._call("blake3", at, len(data), out)
        found = self._get(out, 32)
        self._end(1)
        return found

    def _rows(self, examples: Examples) -> tuple[int, int]:
        y = examples.y.astype(np.int64 if examples.y.ndim == 1 else np.float32, copy=False)
        return self._put(examples.x.tobytes()), self._put(y.tobytes())

    def _call(self, name: str, *arguments: int) -> int:
        return int(self._exports[name](self._store, *arguments) or 0)

    def _take(self, size: int) -> int:
        at = self._call("take", _signed(size)) & 0xFFFF_FFFF if size < 1 << 32 else 0
        if at == 0:
            self._end(0)
        return at

    def _put(self, data: bytes) -> int:
        at = self._take(len(data))
        self._memory.write(self._store, data, at)
        return at

    def _get(self, at: int, size: int) -> bytes:
        return bytes(self._memory.read(self._store, at, at + size))

    def _end(self, done: int) -> None:
        self._call("free_all")
        if not done:
            raise KernelOutOfMemory("model and batch do not fit the kernel's memory: make them smaller")


def _signed(word: int) -> int:
    word &= 0xFFFF_FFFF
    return word - (1 << 32) if word >> 31 else word


@cache
def _compiled() -> "tuple[wasmtime.Engine, wasmtime.Module]":
    with extra("audit", "running the browser's kernel"):
        import wasmtime
    engine = wasmtime.Engine()
    return engine, wasmtime.Module(engine, WASM.read_bytes())
