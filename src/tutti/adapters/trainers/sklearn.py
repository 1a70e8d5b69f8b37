"""Local training of scikit-learn's linear SGD models by partial_fit."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier, SGDRegressor

from tutti.adapters.trainers.batches import batches
from tutti.adapters.trainers.measure import Misfit, check, measure
from tutti.core.params import Entry, Layout, Params
from tutti.domain.spec import DataSchema, Metrics
from tutti.ports.training import Examples, Report, Task, Work


class SklearnTrainer:
    """Parameters are `coef` (rows, features) and `intercept` (rows,), with one row for two classes or a target.

    scikit-learn steps once per example; `batch_size` sets how many examples one call and one report cover.
    """

    def __init__(self, data: DataSchema) -> None:
        self.data = data
        rows = data.outputs if data.task == "classification" and data.outputs > 2 else 1
        self._shape = (rows, prod(data.shape))
        self._layout = Layout((Entry("coef", self._shape), Entry("intercept", (rows,))))

    def init(self, seed: int) -> Params:
        """Zeros, whatever the seed: the problem is convex."""
        return Params.zeros(self._layout)

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        check(self._layout, params, self.data, examples)
        _check_training(task)
        model = self._model(params, task)
        x, y = _flat(examples.x), examples.y.reshape(-1)
        classes = {"classes": np.arange(self.data.outputs)} if self.data.task == "classification" else {}
        work = batches(len(examples), task)
        report(0.0, 1, None)
        for done, (epoch, rows) in enumerate(work, start=1):
            model.partial_fit(x[rows], y[rows], **classes)
            if task.correction:
                self._correct(model, params, task, steps=len(rows))
            report(done / len(work), epoch, None)
        trained = self._params(model)
        steps = sum(len(rows) for _, rows in work)
        return Work(trained, len(examples), self.evaluate(trained, examples), steps)

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        check(self._layout, params, self.data, examples)
        return measure(self.predict(params, examples.x), examples.y, self.data)

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of classes, or targets: float32 (n, outputs), for `x` float32 (n, *shape)."""
        scores = _flat(x) @ params["coef"].T.astype(np.float64) + params["intercept"]
        if self.data.task == "classification":
            scores = _one_against_rest(scores)
        return scores.astype(np.float32)

    def _model(self, params: Params, task: Task) -> Any:
        settings = {
            "learning_rate": "constant",
            "eta0": task.lr,
            "alpha": task.training.weight_decay,
            "penalty": "l2" if task.training.weight_decay else None,
            "random_state": np.random.RandomState(task.seed % 2**32),
        }
        model = (
            SGDClassifier(loss="log_loss", **settings)
            if self.data.task == "classification"
            else SGDRegressor(**settings)
        )
        coef, intercept = params["coef"].astype(np.float64), params["intercept"].astype(np.float64)
        model.coef_ = coef if self.data.task == "classification" else coef[0]
        model.intercept_ = intercept
        return model

    def _params(self, model: Any) -> Params:
        params = Params.zeros(self._layout)
        params["coef"][:] = model.coef_.reshape(self._shape)
        params["intercept"][:] = model.intercept_
        return params

    def _correct(self, model: Any, start: Params, task: Task, steps: int) -> None:
        """`steps` gradient steps of what the correction adds to the objective, at once, after those of the loss."""
        correction, shrink = task.correction, max(0.0, 1 - task.lr * task.correction.pull)
        reach = steps if shrink == 1 else (1 - shrink**steps) / (1 - shrink)  # 1 + shrink + shrink^2 + ...
        anchor = start if correction.anchor is None else Params(self._layout, correction.anchor)
        offset = None if correction.offset is None else Params(self._layout, correction.offset)
        for name, values in (("coef", model.coef_), ("intercept", model.intercept_)):
            held = anchor[name].reshape(values.shape)
            moved = held + shrink**steps * (values - held)
            if offset is not None:
                moved = moved - task.lr * reach * offset[name].reshape(values.shape)
            setattr(model, f"{name}_", moved)


def _check_training(task: Task) -> None:
    if task.training.optimizer != "sgd" or task.training.momentum:
        raise Misfit("model 'sgd-linear' trains with plain SGD only; use optimizer 'sgd' and momentum 0, or 'linear'")


def _flat(x: NDArray[np.float32]) -> NDArray[np.float64]:
    return x.reshape(len(x), -1).astype(np.float64)


def _one_against_rest(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits whose softmax is what scikit-learn gives as probabilities: normalised one-against-rest sigmoids."""
    if scores.shape[1] == 1:
        return np.hstack([np.zeros_like(scores), scores])
    return -np.logaddexp(0, -scores)
