"""Linear models of scikit-learn, for machines without torch."""

from tutti.adapters._imports import extra
from tutti.adapters.models._build import UnsuitableData
from tutti.domain.spec import DataSchema
from tutti.ports.training import Trainer, models


@models.register("sgd-linear")
def sgd_linear(*, data: DataSchema) -> Trainer:
    """SGDClassifier (logistic loss) or SGDRegressor (squared loss) of scikit-learn: one SGD step an example."""
    if data.task == "regression" and data.outputs != 1:
        raise UnsuitableData(f"model 'sgd-linear' predicts one target, this data has {data.outputs}; use 'linear'")
    if data.task == "classification" and data.outputs < 2:
        raise UnsuitableData("model 'sgd-linear' needs at least two classes, this data has one")
    with extra("data", "model 'sgd-linear'"):
        from tutti.adapters.trainers.sklearn import SklearnTrainer
    return SklearnTrainer(data)
