"""Both trainers: what they compute, what they refuse, and that they leave their inputs alone."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tutti.adapters.trainers.measure import Misfit, measure
from tutti.core.local import Correction
from tutti.core.params import Params, Role
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, Training
from tutti.ports.training import Cancelled, Examples, Task, Trainer, datasets, models

torch = pytest.importorskip("torch", reason="the torch trainer needs pip install 'tutti[torch]'")
pytest.importorskip("sklearn", reason="the scikit-learn trainer needs pip install 'tutti[data]'")

from tutti.adapters.trainers.torch import TorchTrainer, computes_half  # noqa: E402  # after the skip where torch is missing

FLAT = DataSchema("classification", (64,), 10)
IMAGE = DataSchema("classification", (1, 8, 8), 10)
TARGET = DataSchema("regression", (10,), 1)
TRAINERS = {
    "linear": FLAT,
    "mlp:hidden=32x32,dropout=0.2": FLAT,
    "resnet:depth=8,width=4": IMAGE,
    "sgd-linear": FLAT,
}


def silent(share: float, epoch: int, loss: float | None) -> None:
    pass


def build(model: str, data: DataSchema) -> Trainer:
    return models.build(Choice.parse(model), data=data)


def load(source: str) -> tuple[Examples, Examples]:
    data = datasets.build(Choice.parse(source)).load()
    return data.train, data.held_out


def rows_for(data: DataSchema, n: int = 100) -> Examples:
    source = {FLAT: "digits", IMAGE: "digits:image=true", TARGET: "diabetes"}[data]
    train, _ = load(source)
    return Examples(train.x[:n], train.y[:n])


def task(lr: float = 0.05, batch_size: int = 16, seed: int = 7, mu: float = 0.0, **training: object) -> Task:
    return Task(Training(**training), seed, batch_size, lr, Correction(pull=mu))  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "data"), TRAINERS.items())
def test_same_inputs_give_same_bits(model: str, data: DataSchema) -> None:
    rows, work = rows_for(data), task(epochs=2)
    first, second = build(model, data), build(model, data)
    start = first.init(3)
    assert start.buffer.tobytes() == second.init(3).buffer.tobytes()
    once = first.train(start, rows, work, silent)
    torch.manual_seed(99)  # nobody else's seed matters
    again = second.train(start, rows, work, silent)
    reused = first.train(start, rows, work, silent)
    assert once.params.buffer.tobytes() == again.params.buffer.tobytes() == reused.params.buffer.tobytes()
    assert once.metrics == again.metrics == reused.metrics
    other = first.train(start, rows, replace(work, seed=8), silent)
    assert other.params.buffer.tobytes() != once.params.buffer.tobytes()


@pytest.mark.parametrize(("model", "data"), TRAINERS.items())
def test_params_and_examples_are_not_changed(model: str, data: DataSchema) -> None:
    trainer, rows = build(model, data), rows_for(data)
    params = trainer.init(0)
    params.buffer.flags.writeable = rows.x.flags.writeable = rows.y.flags.writeable = False
    work = trainer.train(params, rows, task(), silent)
    trainer.evaluate(params, rows)
    assert not np.shares_memory(work.params.buffer, params.buffer)
    assert work.params.buffer.tobytes() != params.buffer.tobytes()
    assert params.buffer.tobytes() == trainer.init(0).buffer.tobytes()


@pytest.mark.parametrize(("model", "data"), TRAINERS.items())
def test_training_learns_and_reports(model: str, data: DataSchema) -> None:
    trainer, rows = build(model, data), rows_for(data, n=300)
    reports: list[tuple[float, int, float | None]] = []
    start = trainer.init(0)
    work = trainer.train(start, rows, task(lr=0.2, epochs=8), lambda *report: reports.append(report))
    assert work.examples == 300
    assert work.examples == 300
    assert trainer.evaluate(work.params, rows)["loss"] < trainer.evaluate(start, rows)["loss"] * 0.7
    assert {"loss", "accuracy"} <= set(work.metrics)
    shares = [share for share, _, _ in reports]
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert reports[-1][1] == 8
    assert len(reports) > 19 * 8 / 4


@pytest.mark.parametrize(("model", "data"), TRAINERS.items())
def test_report_may_cancel_and_the_trainer_stays_usable(model: str, data: DataSchema) -> None:
    trainer, rows = build(model, data), rows_for(data)
    start = trainer.init(0)
    expected = trainer.train(start, rows, task(epochs=3), silent).params.buffer

    def cancel(share: float, epoch: int, loss: float | None) -> None:
        if share > 0.4:
            raise Cancelled("nobody needs it")

    with pytest.raises(Cancelled, match="nobody"):
        trainer.train(start, rows, task(epochs=3), cancel)
    assert trainer.train(start, rows, task(epochs=3), silent).params.buffer.tobytes() == expected.tobytes()


@pytest.mark.parametrize("model", ["linear", "mlp", "sgd-linear"])
def test_fedprox_pulls_towards_the_global_model(model: str) -> None:
    trainer, rows = build(model, FLAT), rows_for(FLAT)
    start = trainer.init(0)

    def distance(mu: float) -> float:
        moved = trainer.train(start, rows, task(epochs=5, mu=mu), silent).params.buffer
        return float(np.linalg.norm(moved - start.buffer))

    free, pulled, held = distance(0.0), distance(1.0), distance(10.0)
    assert free > 1.2 * pulled > 1.2 * held > 0


@pytest.mark.parametrize("model", ["linear", "sgd-linear"])
def test_a_correction_is_added_to_every_gradient(model: str) -> None:
    """Without a gradient of its own (x = 0, and equal classes cancel), training is descent on the correction alone."""
    data = DataSchema("regression", (2,), 1)
    trainer = build(model, data)
    start = Params(trainer.init(0).layout, np.array([1.0, -2.0, 0.0], np.float32))
    rows = Examples(np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32))
    offset, anchor = np.array([0.5, 1.0, 0.0], np.float32), np.array([3.0, 0.0, 0.0], np.float32)
    work = replace(task(lr=0.1, batch_size=1), correction=Correction(offset, 0.2, anchor))
    w = start.buffer.astype(np.float64)
    for _ in range(4):
        w = w - 0.1 * (offset + 0.2 * (w - anchor))
    trained = trainer.train(start, rows, work, silent)
    assert trained.params.buffer == pytest.approx(w, abs=1e-6)
    assert trained.steps == 4


@pytest.mark.parametrize(("model", "data"), [("mlp", FLAT), ("cnn", IMAGE)])
def test_corrections_lie_as_the_model_is_exchanged_whatever_order_the_weights_are_computed_in(
    model: str, data: DataSchema
) -> None:
    """One step with a correction differs from one without it by lr (offset + pull (w - anchor))."""
    trainer, rows, rng = build(model, data), rows_for(data), np.random.default_rng(0)
    start, once = trainer.init(0), task(lr=0.1, max_steps=1)
    offset, anchor = (rng.standard_normal(start.layout.size).astype(np.float32) for _ in range(2))
    free, corrected = (
        trainer.train(start, rows, replace(once, correction=correction), silent).params.buffer
        for correction in (Correction(), Correction(offset, 0.5, anchor))
    )
    np.testing.assert_allclose(corrected - free, -0.1 * (offset + 0.5 * (start.buffer - anchor)), rtol=0, atol=1e-6)


def test_fedprox_gradient_by_hand() -> None:
    """One weight, one row x = 1, y = 0, squared error: step 1 w = 1 - lr 2; step 2 adds mu (w - 1)."""
    data = DataSchema("regression", (1,), 1)
    trainer = build("linear", data)
    start = trainer.init(0)
    start["1.weight"][:] = 1.0
    rows = Examples(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))
    got = trainer.train(start, rows, task(lr=0.1, epochs=2, mu=0.5), silent).params
    # w + b is the prediction; both get the gradient 2 (w + b) + mu (own - own at the start).
    w, b = 1.0, 0.0
    for _ in range(2):
        error = 2 * (w + b)
        w, b = w - 0.1 * (error + 0.5 * (w - 1)), b - 0.1 * (error + 0.5 * b)
    assert got.buffer == pytest.approx([w, b], abs=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.05)),
        (
            {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        ),
        ({"optimizer": "adam", "weight_decay": 0.01}, lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01)),
    ],
)
def test_optimizers_equal_those_of_torch(ours: dict[str, object], theirs: object) -> None:
    """The flat training loop against the textbook one, layer by layer, on the same batches."""
    from tutti.adapters.trainers.batches import batches

    rows, work, trainer = rows_for(FLAT, n=60), task(epochs=4, **ours), build("mlp:hidden=8", FLAT)
    start = trainer.init(1)
    got = trainer.train(start, rows, work, silent).params

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    net.load_state_dict({entry.name: torch.tensor(values) for entry, values in start.items()})
    optimizer = theirs(net.parameters())  # type: ignore[operator]
    for _, index in batches(60, work):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(rows.x[index])), torch.tensor(rows.y[index]))
        loss.backward()
        optimizer.step()
    expected = np.concatenate([p.detach().numpy().reshape(-1) for p in net.parameters()])
    assert got.buffer == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("model", "data"),
    [("mlp", FLAT), ("mlp:hidden=4096", FLAT), ("cnn", IMAGE), ("resnet:depth=8,width=4", IMAGE)],
)
def test_a_plain_step_is_the_general_one_without_additions(model: str, data: DataSchema) -> None:
    check_plain_steps(build(model, data), data)


def check_plain_steps(trainer: Trainer, data: DataSchema) -> None:
    rows, start = rows_for(data), trainer.init(0)
    tiny = 1e-30  # makes the step a general one, and changes no bit
    plain, general = (trainer.train(start, rows, task(mu=mu), silent) for mu in (0.0, tiny))
    assert (plain.params.buffer != start.buffer).any()
    np.testing.assert_allclose(plain.params.buffer, general.params.buffer, rtol=2e-6, atol=2e-7)
    assert plain.metrics == pytest.approx(general.metrics)


class Twice(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A large layer that every row goes through twice, as parts of a sequence."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first, self.large = torch.nn.Linear(64, 512), torch.nn.Linear(512, 512, bias=bias)
        self.last = torch.nn.Linear(512, 10)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        h = torch.relu(self.first(x)).view(-1, 2, 256).repeat(1, 1, 2)
        h = torch.relu(self.large(torch.relu(self.large(h))))
        return self.last(h.mean(1))  # type: ignore[no-any-return]


class Tied(Twice):
    """The large layer's weights are also used by themselves, and by a function of the module with others in place."""

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        h = torch.relu(self.first(x))
        zero = torch.func.functional_call(self.large, {"weight": h.new_zeros(512, 512)}, (h,))
        return self.last(self.large(h) + torch.relu(h @ self.large.weight) + zero)  # type: ignore[no-any-return]


class Slope(Twice):
    """Its outputs are the slope of a function at each row."""

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            height = torch.tanh(self.large(torch.tanh(self.first(x)))).square().sum()
            (slope,) = torch.autograd.grad(height, x, create_graph=True)
        return slope[:, :10] + self.last(self.first(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", [Twice, lambda: Twice(bias=False), Tied, Slope])
def test_plain_steps_of_large_layers_are_right_however_a_module_uses_them(module: object) -> None:
    check_plain_steps(TorchTrainer(module, FLAT), FLAT)  # type: ignore[arg-type]


def test_a_large_layer_that_the_module_freezes_stays_as_it_is() -> None:
    def frozen() -> "torch.nn.Module":  # type: ignore[name-defined]
        module = Twice()
        module.large.weight.requires_grad_(False)
        return module

    trainer = TorchTrainer(frozen, FLAT)
    start = trainer.init(0)
    found = trainer.train(start, rows_for(FLAT), task(), silent).params
    np.testing.assert_array_equal(found["large.weight"], start["large.weight"])
    assert (found["large.bias"] != start["large.bias"]).any()


def test_parameters_that_the_loss_does_not_depend_on_stay_as_they_are() -> None:
    class Spare(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = torch.nn.Linear(64, 10), torch.nn.Linear(3, 3)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return self.used(x)  # type: ignore[no-any-return]

    trainer, rows = TorchTrainer(Spare, FLAT), rows_for(FLAT)
    start = trainer.init(0)
    found = trainer.train(start, rows, task(), silent).params
    np.testing.assert_array_equal(found["spare.weight"], start["spare.weight"])
    assert (found["used.weight"] != start["used.weight"]).any()


def test_batchnorm_has_roles_and_its_statistics_travel() -> None:
    trainer, rows = build("resnet:depth=8,width=4", IMAGE), rows_for(IMAGE)
    start = trainer.init(0)
    roles = {entry.name: entry.role for entry in start.layout.entries}
    assert roles["1.weight"] is Role.WEIGHT
    assert roles["1.running_mean"] is roles["1.running_var"] is Role.BUFFER
    assert roles["1.num_batches_tracked"] is Role.COUNTER
    assert len(start.layout.spans_of(Role.WEIGHT)) == 1
    work = trainer.train(start, rows, task(epochs=2, batch_size=33), silent)
    assert work.params["1.num_batches_tracked"] == 6  # 100 rows: 33 + 33 + 34, no batch of one
    assert not np.array_equal(work.params["1.running_mean"], start["1.running_mean"])
    # Trained on from where it stopped, by a trainer that has never seen it, as by the one that has.
    fresh = build("resnet:depth=8,width=4", IMAGE)
    mine, theirs = (t.train(work.params, rows, task(), silent).params for t in (trainer, fresh))
    assert mine.buffer.tobytes() == theirs.buffer.tobytes()
    assert fresh.evaluate(work.params, rows) == trainer.evaluate(work.params, rows)


@pytest.mark.parametrize("model", ["resnet:depth=14,width=4", "mlp:hidden=16x16x16,dropout=0.5", "cnn"])
def test_gradient_checkpointing_gives_equal_results(model: str) -> None:
    trainer, rows = build(model, IMAGE), rows_for(IMAGE, n=50)
    start = trainer.init(0)
    plain = trainer.train(start, rows, task(epochs=2), silent)
    saved = trainer.train(start, rows, task(epochs=2, gradient_checkpointing=True), silent)
    assert saved.params.buffer.tobytes() == plain.params.buffer.tobytes()
    assert saved.metrics == plain.metrics


def test_gradient_checkpointing_finds_sequentials_inside_other_modules() -> None:
    from torch import nn

    from tutti.adapters.trainers.torch import TorchTrainer

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
            self.head = nn.Linear(16, 10)

        def forward(self, x: object) -> object:
            return self.head(self.body(x))

    trainer, rows = TorchTrainer(Nested, FLAT), rows_for(FLAT)
    start = trainer.init(0)
    plain = trainer.train(start, rows, task(epochs=2), silent).params
    saved = trainer.train(start, rows, task(epochs=2, gradient_checkpointing=True), silent).params
    assert saved.buffer.tobytes() == plain.buffer.tobytes()
    assert saved["body.1.num_batches_tracked"] == 14


def test_dropout_is_seeded_even_between_threads() -> None:
    trainer, rows = build("mlp:hidden=32,dropout=0.5", FLAT), rows_for(FLAT)
    start, seeds = trainer.init(0), range(4)

    def work(seed: int) -> bytes:
        return trainer.train(start, rows, task(seed=seed, epochs=3), silent).params.buffer.tobytes()

    alone = [work(seed) for seed in seeds]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places at every chance
    try:
        with ThreadPoolExecutor(len(seeds)) as threads:
            together = list(threads.map(work, seeds))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone


def test_global_generator_is_left_alone() -> None:
    trainer, rows = build("mlp:dropout=0.5", FLAT), rows_for(FLAT)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.train(trainer.init(0), rows, task(), silent)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("model", ["linear", "mlp:hidden=8,activation=tanh", "sgd-linear"])
def test_regression(model: str) -> None:
    trainer, (train, held_out) = build(model, TARGET), load("diabetes")
    start = trainer.init(0)
    work = trainer.train(start, train, task(lr=0.01, epochs=10), silent)
    before, after = trainer.evaluate(start, held_out), trainer.evaluate(work.params, held_out)
    assert set(after) == {"loss", "mse", "r2"}
    assert after["mse"] < before["mse"]
    assert after["r2"] > 0.3
    assert "loss" in work.metrics


def test_r2_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import log_loss, r2_score

    rng = np.random.default_rng(0)
    y, predicted = rng.normal(size=(2, 50, 3)).astype(np.float32)
    y[:, 2] = 1.0
    two = measure(predicted, y, DataSchema("regression", (1,), 3))
    assert two["r2"] == pytest.approx(r2_score(y, predicted))
    assert two["mse"] == pytest.approx(((y - predicted) ** 2).mean(), rel=1e-5)
    labels = rng.integers(0, 3, 50)
    shares = np.exp(predicted) / np.exp(predicted).sum(axis=1, keepdims=True)
    one = measure(predicted, labels, DataSchema("classification", (1,), 3))
    assert one["loss"] == pytest.approx(log_loss(labels, shares, labels=[0, 1, 2]), rel=1e-5)
    assert one["accuracy"] == (predicted.argmax(1) == labels).mean()


def test_sgd_linear_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import SGDClassifier

    for classes in (2, 10):
        data = DataSchema("classification", (64,), classes)
        train, _ = load("digits")
        keep = train.y < classes
        rows = Examples(train.x[keep], train.y[keep])
        trainer = build("sgd-linear", data)
        params = trainer.train(trainer.init(0), rows, task(lr=0.01, epochs=3), silent).params
        theirs = SGDClassifier(loss="log_loss")
        theirs.classes_, theirs.coef_, theirs.intercept_ = np.arange(classes), params["coef"], params["intercept"]
        shares = theirs.predict_proba(rows.x)
        likelihood = shares[np.arange(len(rows.y)), rows.y]
        got = trainer.evaluate(params, rows)
        assert got["accuracy"] == theirs.score(rows.x, rows.y) > 0.9
        assert got["loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)


@pytest.mark.parametrize("model", ["linear", "sgd-linear"])
def test_max_steps_ends_early(model: str) -> None:
    trainer, rows = build(model, FLAT), rows_for(FLAT, n=64)
    shares: list[float] = []
    start = trainer.init(0)
    short = trainer.train(start, rows, task(epochs=9, max_steps=4), lambda share, *_: shares.append(share))
    assert shares[-1] == 1.0
    one_epoch = trainer.train(start, rows, task(epochs=1), silent)  # 64 rows in batches of 16: the same four steps
    assert short.params.buffer.tobytes() == one_epoch.params.buffer.tobytes()


def test_divergence_is_reported_not_hidden() -> None:
    trainer, rows = build("mlp", TARGET), rows_for(TARGET)
    work = trainer.train(trainer.init(0), rows, task(lr=1000.0, epochs=5), silent)
    assert not np.isfinite(work.metrics["loss"])
    assert not np.isfinite(work.params.buffer).all()


@pytest.mark.parametrize("model", ["linear", "sgd-linear"])
def test_what_does_not_fit_is_refused(model: str) -> None:
    trainer, rows = build(model, FLAT), rows_for(FLAT)
    params = trainer.init(0)
    other = build("mlp:hidden=4", FLAT).init(0)
    wrong_labels = Examples(rows.x, rows.y + 5)
    for given, examples, message in [
        (other, rows, "not of this model: '.*' is (missing|not part)"),
        (params, Examples(rows.x[:, :60], rows.y), r"takes examples of shape \(64,\), these have \(60,\)"),
        (params, Examples(rows.x, rows.y[:, None]), r"expected targets of shape \(100,\)"),
        (params, wrong_labels, "expected classes 0 to 9, came 5 to 14"),
        (params, Examples(rows.x[:0], rows.y[:0]), "at least one example"),
    ]:
        with pytest.raises(Misfit, match=message):
            trainer.train(given, examples, task(), silent)
        with pytest.raises(Misfit, match=message):
            trainer.evaluate(given, examples)


def test_batchnorm_refuses_a_batch_of_one() -> None:
    trainer, rows = build("resnet:depth=8,width=4", IMAGE), rows_for(IMAGE, n=3)
    with pytest.raises(Misfit, match="BatchNorm needs batches of at least 2"):
        trainer.train(trainer.init(0), rows, task(batch_size=1), silent)


def test_sgd_linear_refuses_other_optimizers() -> None:
    trainer, rows = build("sgd-linear", FLAT), rows_for(FLAT)
    for training in ({"optimizer": "adam"}, {"momentum": 0.9}):
        with pytest.raises(Misfit, match="plain SGD only"):
            trainer.train(trainer.init(0), rows, task(**training), silent)


@pytest.mark.parametrize(("model", "data"), [("mlp", FLAT), ("mlp:hidden=4096", FLAT), ("cnn", IMAGE)])
def test_mixed_precision_is_nearly_the_same_and_without_bfloat16_exactly(model: str, data: DataSchema) -> None:
    trainer, rows = build(model, data), rows_for(data)
    start = trainer.init(0)
    plain, mixed, again = (
        trainer.train(start, rows, task(mixed_precision=m), silent).params.buffer for m in (False, True, True)
    )
    assert mixed.tobytes() == again.tobytes()
    if not computes_half(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        assert plain.tobytes() == mixed.tobytes()
        return
    moved = np.linalg.norm(plain - start.buffer)
    assert 0 < np.linalg.norm(mixed - plain) < 0.1 * moved


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_too_the_same_inputs_give_the_same_bits() -> None:
    trainer, rows = build("cnn", IMAGE), rows_for(IMAGE)
    start = trainer.init(0)
    for mixed in (False, True):
        work = task(epochs=2, mixed_precision=mixed)
        first, second = (trainer.train(start, rows, work, silent) for _ in range(2))
        assert first.params.buffer.tobytes() == second.params.buffer.tobytes()
        assert first.metrics["loss"] < trainer.evaluate(start, rows)["loss"]
