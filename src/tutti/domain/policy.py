"""What a node's owner allows: read from a TOML file, obeyed by the node, overridden by no coordinator.

allow_jobs = ["digits-*"]                        # glob patterns; empty or absent: any
forbid_models = ["resnet*"]
allow_modules = ["hospital.models"]              # Python modules that jobs may have imported; absent: none
min_cohort = 3                                   # never train in a smaller company
hours = ["22:00-06:00", "sat,sun 00:00-24:00"]   # local time
max_cpus = 2
min_battery = 0.3                                # of the charge, while on battery: below, no work
max_ram = "4 GB"
max_epochs = 10                                  # local epochs in one round
allow_gpu = true
max_gpu = 0.5                                    # share of each GPU's memory, and of its units where MPS runs
allow_statistics = true                          # mean, quantiles and the like of the data (`tutti preflight`)
min_rows = 20                                    # of fewer rows no statistic is told
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.domain.modules import unlisted
from tutti.domain.nodes import Capabilities, Terms
from tutti.domain.spec import Positive, Training

GB = 10**9
OUT_OF_HOURS = "outside its owner's hours"

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_UNITS = {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


class BadPolicy(UserError):
    """The policy file cannot be read as one; the message names the field, what was expected and what came."""


class Window(msgspec.Struct, frozen=True):
    """Hours on some weekdays, in minutes since midnight; `end` at or before `start` is on the next day.

    A window belongs to the day on which it starts: `fri 22:00-06:00` ends on Saturday.
    """

    start: int
    end: int
    days: frozenset[int] = frozenset(range(7))  # Monday is 0

    def contains(self, now: datetime) -> bool:
        minute, day = 60 * now.hour + now.minute, now.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        yesterday = (day - 1) % 7
        return (day in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's limits. The default allows everything but modules of a job's choice; sizes are in bytes."""

    allow_jobs: tuple[str, ...] = ()
    forbid_jobs: tuple[str, ...] = ()
    allow_models: tuple[str, ...] = ()
    forbid_models: tuple[str, ...] = ()
    allow_modules: tuple[str, ...] = ()
    min_cohort: Positive = 1
    hours: tuple[Window, ...] = ()
    max_cpus: Positive | None = None
    max_ram: Positive | None = None
    max_epochs: Positive | None = None
    min_battery: Annotated[float, Meta(ge=0, le=1)] | None = None
    allow_gpu: bool = True
    max_gpu: Annotated[float, Meta(gt=0, le=1)] | None = None
    allow_statistics: bool = True
    min_rows: Positive = 10


class Request(Protocol):
    """What a coordinator asks for, as far as a policy looks at it; `wire.messages.Start` is one."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> Choice: ...
    @property
    def cohort(self) -> int: ...
    @property
    def training(self) -> Training: ...


def allows(policy: Policy, request: Request, now: datetime) -> str | None:
    """Why the owner's policy forbids this work at `now` (local time); None when it allows it."""
    job, model, epochs = request.name, request.model.name, request.training.epochs
    if not is_open(policy, now):
        return OUT_OF_HOURS
    if not _permitted(job, policy.allow_jobs, policy.forbid_jobs):
        return f"its owner does not allow job {job!r}"
    if not _permitted(model, policy.allow_models, policy.forbid_models):
        return f"its owner does not allow model {model!r}"
    if (module := unlisted(request.model, policy.allow_modules)) is not None:
        return (
            f"its owner does not let jobs import module {module!r}: "
            f'add allow_modules = ["{module}"] to that node\'s policy file (`tutti join --policy`)'
        )
    if request.cohort < policy.min_cohort:
        return f"its owner wants cohorts of {policy.min_cohort} or more, this one has {request.cohort}"
    if policy.max_epochs is not None and epochs > policy.max_epochs:
        return f"its owner allows {policy.max_epochs} local epochs a round, the job asks for {epochs}"
    return None


def tells(policy: Policy, nodes: int, now: datetime) -> str | None:
    """Why the owner's policy forbids telling statistics, where so many nodes are asked; None when it allows it."""
    if not policy.allow_statistics:
        return "its owner does not let statistics be told (allow_statistics)"
    if not is_open(policy, now):
        return OUT_OF_HOURS
    if nodes < policy.min_cohort:
        return f"its owner wants company of {policy.min_cohort} nodes or more, {nodes} are asked"
    return None


def closed(policy: Policy, now: datetime, battery: float | None) -> str | None:
    """Why the owner's machine does no work at `now` (local time); None when it does.

    `battery` is its charge, 0 to 1; None where there is none, or the machine is plugged in.
    """
    if not is_open(policy, now):
        return OUT_OF_HOURS
    if battery is not None and policy.min_battery is not None and battery < policy.min_battery:
        return f"its battery is at {battery:.0%}, its owner wants {policy.min_battery:.0%} or more"
    return None


def is_open(policy: Policy, now: datetime) -> bool:
    """Whether `now` (local time) is within the owner's hours."""
    return not policy.hours or any(window.contains(now) for window in policy.hours)


def _permitted(name: str, allowed: Sequence[str], forbidden: Sequence[str]) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in forbidden):
        return False
    return not allowed or any(fnmatchcase(name, pattern) for pattern in allowed)


def terms(policy: Policy, now: datetime, battery: float | None = None) -> Terms:
    """The part of the policy that a coordinator is told."""
    opened = closed(policy, now, battery) is None
    return Terms(policy.allow_jobs, policy.allow_models, policy.min_cohort, opened, policy.allow_modules)


def offered(machine: Capabilities, policy: Policy) -> Capabilities:
    """The part of the machine that its owner lends."""
    return msgspec.structs.replace(
        machine,
        cpus=min(machine.cpus, policy.max_cpus or machine.cpus),
        memory=min(machine.memory, policy.max_ram or machine.memory),
        gpus=machine.gpus if policy.allow_gpu else (),
    )


def batch_size_for(ram: int) -> int:
    """Examples per batch for a machine that lends `ram` bytes, where the job leaves the choice to the node.

    2-4 GB: 4-8; 4-8 GB: 8-16; 8-16 GB: 16-32; more: 32-64. The lower half of a range gives its smaller
    number and the upper half its larger one, always a power of two. So 4, 8 and 16 GB machines get the same
    batch whether their firmware keeps a little for itself or not.
    """
    for gigabytes, batch_size in ((24, 64), (12, 32), (6, 16), (3, 8)):
        if ram >= gigabytes * GB:
            return batch_size
    return 4


# -- reading the file --------------------------------------------------------------------------------


def load_policy(text: str) -> Policy:
    """A policy from the text of its TOML file; raises BadPolicy naming the field that is wrong."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadPolicy(f"the policy is not valid TOML: {error}") from None
    fields = {field.name: field.type for field in msgspec.structs.fields(Policy)}
    if unknown := sorted(raw.keys() - fields.keys()):
        raise BadPolicy(f"policy: there is no field {unknown[0]!r}; there are: {', '.join(fields)}")
    policy = Policy(**{name: _field(name, value, fields[name]) for name, value in raw.items()})
    if policy.max_gpu is not None and not policy.allow_gpu:
        raise BadPolicy("policy: max_gpu is a share of what allow_gpu = false forbids: leave one of them out")
    return policy


def _field(name: str, value: Any, type: Any) -> Any:
    try:
        if name in _READERS:
            return _READERS[name](value)
        return msgspec.convert(value, type)
    except (ValueError, msgspec.ValidationError) as error:
        raise BadPolicy(f"policy: {name}: {error}; came {value!r}") from None


def _windows(value: Any) -> tuple[Window, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('expected windows such as "22:00-06:00" or ["mon-fri 18:00-24:00"]')
    return tuple(parse_window(text) for text in texts)


def parse_window(text: str) -> Window:
    """Read `22:00-06:00`, `sat,sun 00:00-24:00` or `mon-fri 18:00-24:00`; raises ValueError."""
    *days, hours = text.lower().split() or [""]
    found = re.fullmatch(r"(\d\d?):(\d\d)-(\d\d?):(\d\d)", hours)
    if found is None or len(days) > 1:
        raise ValueError(f'expected hours such as "22:00-06:00" or "mon-fri 18:00-24:00", not {text!r}')
    start_hour, start_minute, end_hour, end_minute = map(int, found.groups())
    start, end = 60 * start_hour + start_minute, 60 * end_hour + end_minute
    if max(start_minute, end_minute) > 59 or start >= 1440 or end > 1440:
        raise ValueError(f"expected times from 00:00 to 24:00, not {hours!r}")
    if start == end:
        raise ValueError(f'{hours!r} is no time at all; the whole day is "00:00-24:00"')
    return Window(start, end, _weekdays(days[0])) if days else Window(start, end)


def _weekdays(text: str) -> frozenset[int]:
    """`sat,sun` or `fri-mon`, or both mixed; raises ValueError."""
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"expected weekdays out of {', '.join(_DAYS)}, not {part!r}")
        begin = _DAYS.index(first)
        days.update((begin + step) % 7 for step in range((_DAYS.index(last or first) - begin) % 7 + 1))
    return frozenset(days)


def parse_size(value: Any) -> int:
    """Bytes, from a text such as `4 GB` (10^9) or `512 MiB` (2^20); raises ValueError."""
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b)\s*", value, re.IGNORECASE) if isinstance(value, str) else None
    )
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise ValueError('expected a size such as "4 GB" or "512 MiB"')
    return size


_READERS: Mapping[str, Callable[[Any], Any]] = {"hours": _windows, "max_ram": parse_size}
