"""A job's whole specification: what a person writes in `job.toml`, sends to the API or types as options."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tutti.core import codec
from tutti.core.errors import UserError
from tutti.core.reduce import reducers
from tutti.core.registry import Choice
from tutti.core.sampling import cohort_size
from tutti.core.steps import in_steps
from tutti.core.strategy import Strategy, compose, strategies

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")]
Positive = Annotated[int, Meta(ge=1)]
LONGEST = 604_800.0  # seconds: one week
Seconds = Annotated[float, Meta(gt=0, le=LONGEST)]
Metrics = dict[str, float]


class BadSpec(UserError):
    """The job cannot be run as written."""


class DataSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the rows of a data set look like; two nodes can train together only if `mismatch` of theirs is None.

    Attributes:
        task: What is predicted.
        shape: Shape of one example without the batch axis, such as (1, 28, 28) or (64,).
        outputs: Number of classes, or of target columns for a regression.
        features: Names of the columns in their order, where examples are rows of a table; empty: not known.
        classes: Names of the classes in their order; empty: they are numbers.
        mean, deviation: By column, by which rows are normalised before a model sees them; empty: they are not.
    """

    task: Literal["classification", "regression"]
    shape: tuple[Positive, ...]
    outputs: Positive
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()


def in_words(data: DataSchema) -> str:
    """A schema for people: `classification of 28x28 into 10 classes`."""
    what = "classes" if data.task == "classification" else "targets"
    return f"{data.task} of {'x'.join(map(str, data.shape))} into {data.outputs} {what}"


def mismatch(expected: DataSchema, found: DataSchema) -> str | None:
    """Why rows of two kinds do not belong together, naming columns and classes; None when they do.

    Names are compared where both are known.
    """
    if found.features and expected.features and found.features != expected.features:
        return _differing("column", expected.features, found.features)
    if found.classes and expected.classes and found.classes != expected.classes:
        return _differing("class", expected.classes, found.classes)
    if (found.task, found.shape, found.outputs) != (expected.task, expected.shape, expected.outputs):
        return f"it is {in_words(found)}, expected {in_words(expected)}"
    return None


NAMED = 5
"""Columns or classes that a message names."""


def _differing(kind: str, expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    changes = {
        "lacks": [name for name in expected if name not in found],
        "has": [name for name in found if name not in expected],
    }
    said = [f"{verb} the {kind} {_listed(names)}" for verb, names in changes.items() if names]
    if said:
        return f"it {' and '.join(said)}; expected {_listed(expected)}"
    return f"its {kind} names come in another order: {_listed(found)}; expected {_listed(expected)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The local work of one node in one round."""

    epochs: Positive = 1
    batch_size: Positive | None = None  # None: the node chooses by its memory
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[float, Meta(gt=0, le=1e3)] = 0.1
    lr_schedule: Choice = Choice("constant")  # over rounds
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    max_steps: Positive | None = None
    mixed_precision: bool = False  # bfloat16, where the node's GPU or CPU computes in it
    gradient_checkpointing: bool = False


class CohortRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes part in a round, and when it closes.

    Attributes:
        min_nodes: A round opens once this many eligible nodes are connected.
        size: How many updates a round wants; None for `fraction` of the eligible nodes.
        over_select: Extra nodes asked, as a share of the wanted size; the round closes without the slowest.
        quorum: Updates without which a round fails; None for `min_nodes`, or `size` if that is smaller.
        deadline: Longest duration of a round in seconds.
        floor: Shortest duration to which the deadline adapts, in seconds.
        patience: The deadline adapts to median + patience x MAD of past arrivals, and to twice what a quorum took.
        grace: How long a node may be disconnected before the round goes on without it, in seconds.
        lease: How long a node may be silent about its progress, in seconds.
        retries: How often one round may fail before the job does.
        wait: How long to wait for `min_nodes` before the job fails, in seconds; None for ever.
        weighting: `examples` weights an update by its number of examples, `equal` by 1.
        max_weight: The most that one update and its metrics may weigh; larger claims are cut to it.
        by_speed: Nodes that were slow get less local work, so as to be done with the middle of the cohort.
        less_of: What they get less of: `steps`, or rows in each `batch`, down to half of them, and then steps.
        prefer_fast: Share of a round's places for nodes that answered fast, by machine and link; 0: all by chance.
        at_least_every: With `prefer_fast`, a node that has not been asked for so many rounds is asked before others.
    """

    min_nodes: Positive = 1
    size: Positive | None = None
    fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    over_select: Annotated[float, Meta(ge=0, le=4)] = 0.0
    quorum: Positive | None = None
    deadline: Seconds = 600.0
    floor: Seconds = 30.0
    patience: Annotated[float, Meta(ge=1)] = 6.0
    grace: Seconds = 20.0
    lease: Seconds = 120.0
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    wait: Seconds | None = None
    weighting: Literal["examples", "equal"] = "examples"
    max_weight: Annotated[int, Meta(ge=1, le=2**24)] = 2**20
    by_speed: bool = False
    less_of: Literal["steps", "batch"] = "steps"
    prefer_fast: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    at_least_every: Positive = 20

    @property
    def largest_weight(self) -> int:
        """The most that an update of this job can weigh: what the exact sum must have room for."""
        return 1 if self.weighting == "equal" else self.max_weight


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how often the global model is measured.

    Attributes:
        every: After every so many rounds (the last is always measured).
        nodes: Nodes measure the model they receive on their own held-out rows.
        data: A bundled data set that the coordinator itself evaluates on, such as `digits:split=test`.
    """

    every: Positive = 1
    nodes: bool = True
    data: Choice | None = None


class EarlyStopping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """End the job when `metric` reaches `target`, or has not improved by `min_delta` for `patience` evaluations."""

    metric: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    target: float | None = None
    patience: Positive | None = None
    min_delta: Annotated[float, Meta(ge=0)] = 0.0


class Rewards(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens for those whose updates made the model better.

    Attributes:
        pool: Tokens a round.
        data: A bundled data set on which contributions are measured, such as `digits:split=test`.
        sponsor: The account that pays; the pool of all rounds is set aside when the job begins.
    """

    pool: Annotated[int, Meta(ge=1, le=2**40)]
    data: Choice
    sponsor: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,99}$")] = "treasury"


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A training request. Every field has a default but `dataset` and `model`."""

    dataset: Name
    model: Choice
    name: Name = "job"
    strategy: Choice = Choice("fedavg")
    reducer: Choice = Choice("mean")  # how updates become one: robust ones hold against bad nodes
    codec: Choice = codec.NONE  # how updates travel; `auto`: each node chooses by its link
    model_codec: Choice = Choice("none")  # how models travel to nodes that hold an earlier one; `none`: whole
    trusted: Choice | None = None  # rows that the coordinator itself trains on, for reducers that compare (fltrust)
    rounds: Positive = 10
    seed: Annotated[int, Meta(ge=0, le=2**53)] = 0
    normalize: bool = False  # by mean and deviation of all nodes' training rows, of which no row is told
    training: Training = Training()
    cohort: CohortRules = CohortRules()
    evaluation: Evaluation = Evaluation()
    early_stopping: EarlyStopping | None = None
    rewards: Rewards | None = None


def strategy_of(spec: JobSpec) -> Strategy:
    """The job's strategy with its reducer, and its models in steps if they have a codec."""
    composed = compose(spec.strategy, spec.reducer)
    return composed if spec.model_codec == codec.NONE else in_steps(composed, codec.codecs.build(spec.model_codec))


_CHOICES = (
    ("model",),
    ("strategy",),
    ("reducer",),
    ("codec",),
    ("model_codec",),
    ("trusted",),
    ("training", "lr_schedule"),
    ("evaluation", "data"),
    ("rewards", "data"),
)


def load_spec(raw: Mapping[str, Any]) -> JobSpec:
    """A JobSpec from plain data (JSON, TOML, CLI options); raises BadSpec naming the field that is wrong.

    Where a field is a Choice, its short form `name:key=value` and the flat table
    `{name = "fedadam", server_lr = 0.1}` are read too.
    """
    data = _expand(raw, ())
    try:
        return msgspec.convert(data, JobSpec)
    except msgspec.ValidationError as error:
        raise BadSpec(f"job: {error}") from None


def _expand(value: Any, path: tuple[str, ...]) -> Any:
    if path in _CHOICES and isinstance(value, str):
        return msgspec.to_builtins(Choice.parse(value))
    if path in _CHOICES and isinstance(value, Mapping) and "options" not in value:
        return {"name": value.get("name"), "options": {k: v for k, v in value.items() if k != "name"}}
    if isinstance(value, Mapping):
        return {key: _expand(item, (*path, key)) for key, item in value.items()}
    return value


def check_composition(spec: JobSpec) -> None:
    """Refuse a job whose parts contradict each other, before it starts; raises BadSpec."""
    cohort = spec.cohort
    if cohort.size is not None and cohort.min_nodes < cohort.size:
        raise BadSpec(
            f"cohort.size is {cohort.size}, but cohort.min_nodes is {cohort.min_nodes}: "
            f"a round could open with too few nodes; set min_nodes to {cohort.size} or more"
        )
    if cohort.quorum is not None and cohort.quorum > (cohort.size or cohort.min_nodes):
        raise BadSpec(
            f"cohort.quorum is {cohort.quorum}, more than the {cohort.size or cohort.min_nodes} nodes "
            "that a round may start with: it could never close; lower the quorum"
        )
    if cohort.less_of != "steps" and not cohort.by_speed:
        raise BadSpec("cohort.less_of says what slow nodes get less of: set cohort.by_speed, too")
    if cohort.prefer_fast and cohort.size is None and cohort.fraction == 1:
        raise BadSpec("cohort.prefer_fast chooses where not all are asked: set cohort.size or cohort.fraction")
    _check_reducer(spec)
    _check_strategy(spec)
    codec.check(spec.codec)
    _check_model_codec(spec)
    if spec.rewards is not None and spec.rewards.pool * spec.rounds > 2**53:
        raise BadSpec(f"rewards.pool of {spec.rewards.pool} for {spec.rounds} rounds is more than there can be tokens")
    if spec.early_stopping and spec.early_stopping.target is None and spec.early_stopping.patience is None:
        raise BadSpec("early_stopping needs a target, a patience, or both")
    if spec.early_stopping and not spec.evaluation.nodes and spec.evaluation.data is None:
        raise BadSpec("early_stopping needs an evaluation: set evaluation.nodes or evaluation.data")


def _check_model_codec(spec: JobSpec) -> None:
    if spec.model_codec == codec.NONE:
        return
    if spec.model_codec == codec.AUTO:
        raise BadSpec("model_codec decides what the model is, the same for all nodes: name one, such as int8")
    codec.check(spec.model_codec)
    if strategies.build(spec.strategy).shares_slots:
        raise BadSpec(
            f"strategy {spec.strategy} sends nodes more than the model, which has no steps: leave model_codec out"
        )


def _check_strategy(spec: JobSpec) -> None:
    strategy, training = strategies.build(spec.strategy), spec.training
    if strategy.rounds is not None and spec.rounds != strategy.rounds:
        raise BadSpec(f"strategy {spec.strategy} exchanges models {strategy.rounds} time: set rounds = 1 (--rounds 1)")
    paced = "by_speed" if spec.cohort.by_speed else "prefer_fast" if spec.cohort.prefer_fast else ""
    if paced and (strategy.in_turn or strategy.asynchrony is not None):
        raise BadSpec(f"with strategy {spec.strategy} nobody waits for a slow node: leave cohort.{paced} out")
    if strategy.in_turn and (spec.cohort.size or 1) != 1:
        raise BadSpec(f"strategy {spec.strategy} asks one node a round: leave cohort.size out, or set it to 1")
    if not strategy.only_deltas and not reducers.build(spec.reducer).linear:
        raise BadSpec(
            f"strategy {spec.strategy} sums more than changes of the model, which reducer {spec.reducer} cannot judge: "
            "use reducer mean, or a strategy such as fedavg"
        )
    wanted = strategy.local.optimizer
    if wanted != "any" and training.optimizer != "sgd":
        raise BadSpec(f'the formulas of strategy {spec.strategy} are those of SGD: set training.optimizer = "sgd"')
    if wanted == "plain sgd" and training.momentum:
        raise BadSpec(f"the formulas of strategy {spec.strategy} are those of plain SGD: set training.momentum = 0")


def _check_reducer(spec: JobSpec) -> None:
    cohort, reducer = spec.cohort, reducers.build(spec.reducer)
    if (reducer.rooted is None) != (spec.trusted is None):
        needs = "needs `trusted`, a data set that the coordinator trains on" if reducer.rooted else "takes no `trusted`"
        raise BadSpec(f'reducer {spec.reducer} {needs}, such as fltrust with trusted = "digits:split=test"')
    needed = reducer.min_updates
    fewest = min(cohort.quorum or cohort.min_nodes, cohort_size(cohort.min_nodes, cohort.size, cohort.fraction))
    if fewest < needed:
        raise BadSpec(
            f"reducer {spec.reducer} needs {needed} updates or more, but a round may close with {fewest}: "
            f"set cohort.min_nodes, cohort.size and cohort.quorum to {needed} or more, or expect fewer bad nodes"
        )
