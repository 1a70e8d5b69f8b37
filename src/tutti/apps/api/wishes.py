"""Reads what people ask for in their own words: other systems' field names, flat or nested, any spelling.

This is for the documented paths of other systems only; `POST /api/v1/jobs` takes a JobSpec to the letter.
"""

import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tutti.apps.api.nodes import JoinRequest
from tutti.core.errors import UserError
from tutti.core.registry import Choice, Registry
from tutti.domain.spec import CohortRules, JobSpec, Training, load_spec
from tutti.services.members import NodeStatus

Path = tuple[str, ...]

_OWN_NAMES: dict[str, Path] = {
    **{name: (name,) for name in JobSpec.__struct_fields__ if name not in ("training", "cohort")},
    **{name: ("training", name) for name in Training.__struct_fields__},
    **{name: ("cohort", name) for name in CohortRules.__struct_fields__},
}
_OTHER_NAMES: dict[Path, str] = {
    ("name",): "job_name session_name title",
    ("model",): "model_type model_name architecture",
    ("dataset",): "data_set dataset_name",
    ("strategy",): "aggregation aggregation_method aggregation_strategy algorithm",
    ("rounds",): "num_rounds total_rounds max_rounds global_rounds",
    ("training", "epochs"): "local_epochs epochs_per_round num_epochs",
    ("training", "lr"): "learning_rate",
    ("cohort", "min_nodes"): "min_devices min_clients num_nodes num_devices num_clients",
    ("cohort", "size"): "devices_per_round clients_per_round nodes_per_round",
}
PLACES: Mapping[str, Path] = _OWN_NAMES | {
    name: place for place, names in _OTHER_NAMES.items() for name in names.split()
}
"""Where in a JobSpec a field of that name belongs."""

WHOLE = frozenset({("model",), ("strategy",), ("evaluation",), ("early_stopping",)})
"""Places of objects whose fields mean something only there."""


class TrainingWish(msgspec.Struct, frozen=True):
    """Any of these, or their synonyms in other systems, flat or nested, snake or camel case; all have defaults."""

    model: str | None = None
    dataset: str | None = None
    rounds: int | None = None
    strategy: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    min_nodes: int | None = None
    name: str | None = None


NODE_NAMES = ("node", "node_id", "device_id", "name", "id")
"""Fields that name a node, the likeliest first."""

CAPABILITIES = "capabilities"
"""What other systems' nodes tell when they register; here a node tells it whenever it connects."""

REMARKS = frozenset({"description", "notes", "tags"})
"""Fields of a job in other systems that change nothing about the training; there is no place for them here."""


NUMBER_LENGTH = 32


class UnknownField(UserError):
    """A field of a request means nothing here, so that what was meant would not come about."""


class StopWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which job; without any, all that run."""

    session_id: str | None = None
    job_id: str | None = None
    id: str | None = None

    @property
    def job(self) -> str | None:
        return self.session_id or self.job_id or self.id


def read_job(
    plain: Mapping[str, Any], nodes: Iterable[NodeStatus], registries: Mapping[str, Registry[Any]]
) -> tuple[JobSpec, list[str]]:
    """The job that is meant, and the remarks that are not kept; raises BadSpec, or UnknownField with all fields."""
    raw: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in _flat(plain):
        if _snake(name) in REMARKS:
            ignored.append(name)
        elif (place := PLACES.get(_snake(name))) is None:
            raise _unknown(name, [*PLACES, *REMARKS])
        elif value is not None:
            _put(raw, place, value)
    here = (node.registration.data for node in nodes if node.connected and node.registration)
    held = Counter(data.name for data in here if data.examples)
    raw.setdefault("dataset", _likely_dataset(held))
    raw.setdefault("model", "mlp")
    raw["dataset"] = _known(raw["dataset"], [*held, *registries["datasets"]])
    raw["model"] = _known(raw["model"], registries["models"])
    if "strategy" in raw:
        raw["strategy"] = _known(raw["strategy"], registries["strategies"])
    if isinstance(raw.get("name"), str):
        raw["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", raw["name"]).strip("-._")[:64] or "job"
    return load_spec(raw), ignored


def read_join(plain: Mapping[str, Any]) -> JoinRequest:
    """Who wants to join, by whatever field names them; a nameless node gets a name. Raises UnknownField."""
    known = (*NODE_NAMES, CAPABILITIES, "token", "secret")
    if unknown := [name for name in plain if _snake(name) not in known]:
        raise _unknown(unknown[0], known)
    fields = {_snake(name): value for name, value in plain.items()}
    named = next((fields[name] for name in NODE_NAMES if fields.get(name)), None)
    request: dict[str, Any] = {name: fields[name] for name in ("token", "secret") if name in fields}
    request["node"] = named or f"node-{secrets.token_hex(4)}"
    return msgspec.convert(request, JoinRequest)


def _unknown(name: str, known: Iterable[str]) -> UnknownField:
    return UnknownField(f"there is no field {name[:80]!r}; there are: {', '.join(sorted(known))}")


def _flat(plain: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The fields of a body and of the objects in it, such as `config` or `hyperparameters`."""
    for name, value in plain.items():
        if isinstance(value, Mapping) and PLACES.get(_snake(name)) not in WHOLE:
            yield from _flat(value)
        else:
            yield name, value


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).replace("-", "_").lower()


def _put(raw: dict[str, Any], place: Path, value: Any) -> None:
    for part in place[:-1]:
        raw = raw.setdefault(part, {})
    raw[place[-1]] = _number(value) if place[-1] not in ("name", "dataset", "model", "strategy") else value


def _number(value: Any) -> Any:
    """Forms send numbers as text. None that makes sense is longer than NUMBER_LENGTH."""
    if not isinstance(value, str) or len(value) > NUMBER_LENGTH:
        return value
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value


def _likely_dataset(held: Mapping[str, int]) -> str:
    """What most connected nodes hold; the first by name of equals."""
    return min(held, key=lambda name: (-held[name], name)) if held else "digits"


def _known(value: Any, names: Iterable[str]) -> Any:
    """Our own spelling of a name such as `MNIST` or `FedAvg`, if it is one of `names`; other values as they came."""
    if not isinstance(value, str):
        return value
    choice = Choice.parse(value)
    own = next((name for name in names if _letters(name) == _letters(choice.name)), choice.name)
    return str(Choice(own, choice.options))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
