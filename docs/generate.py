"""Write the generated parts of the docs: `make docs`. With --check, only say which are stale (exit code 1).

A part stands between `<!-- generated: name -->` and `<!-- end -->`; what is outside is written by hand.
"""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec

import tutti
from tutti.adapters.fabrics.hub import HubFabric
from tutti.apps.api.app import create_app
from tutti.apps.api.problems import status_of
from tutti.apps.api.settings import ApiSettings
from tutti.apps.cli.app import cli
from tutti.apps.cli.catalog import KINDS, described, options_of
from tutti.apps.cli.exits import MEANING, exit_for
from tutti.core import statistics
from tutti.core.errors import TuttiError
from tutti.core.registry import describe
from tutti.domain import spec
from tutti.domain.jobs import STATUS_AFTER, Status
from tutti.domain.rounds import Part
from tutti.ring import chord
from tutti.sim.worlds import world
from tutti.sim.worlds.attacks import attacks
from tutti.sim.worlds.availability import traces
from tutti.sim.worlds.distributions import distributions
from tutti.wire import messages

DOCS = Path(__file__).parent
SCHEMA_FILE = DOCS / "protocol.schema.json"
OPENAPI_FILE = DOCS / "openapi.json"
JOB_PARTS = {
    "": spec.JobSpec,
    "training": spec.Training,
    "cohort": spec.CohortRules,
    "evaluation": spec.Evaluation,
    "early_stopping": spec.EarlyStopping,
    "rewards": spec.Rewards,
}


def job_machine() -> str:
    """The life cycle of a job: from which status which event leads where."""
    rows: dict[tuple[str, str], list[str]] = {}
    for (status, event), after in STATUS_AFTER.items():
        target = after if after is not status else "(stays)"
        rows.setdefault((status, str(target)), []).append(f"`{event.__name__}`")
    lines = [f"| {status} | {', '.join(events)} | {after} |" for (status, after), events in rows.items()]
    final = ", ".join(status for status in Status if status not in {key[0] for key in STATUS_AFTER})
    return "\n".join(["| status | event | then |", "| --- | --- | --- |", *lines, "", f"Final: {final}."])


def node_parts() -> str:
    return ", ".join(f"`{part}`" for part in Part)


def ring_messages() -> str:
    """What a member of the ring does about each thing that comes."""
    rows = [
        f"| {task} | {event.__name__} | `{operation.__name__}` | {_first_line(operation)} |"
        for (event, task), operation in chord.TABLE.items()
    ]
    rows.append(f"| – | {chord.Told.__name__} | `{chord.rectify.__name__}` | {_first_line(chord.rectify)} |")
    return "\n".join(["| task | what comes | operation | what it does |", "| --- | --- | --- | --- |", *rows])


def commands() -> str:
    """The help of every command."""
    return "\n\n".join(
        f"## tutti{' ' if name else ''}{name}\n\n```text\n{text}\n```"
        for name, text in _helps(cli, click.Context(cli, info_name="tutti"), "")
    )


def _helps(command: click.Command, context: click.Context, name: str) -> Iterator[tuple[str, str]]:
    context.terminal_width = context.max_content_width = 100
    yield name, command.get_help(context).strip()
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                inner = click.Context(found, parent=context, info_name=child)
                yield from _helps(found, inner, f"{name} {child}".strip())


def exit_codes() -> str:
    rows = [f"| {code:d} | {meaning} |" for code, meaning in MEANING.items()]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])


def error_tree() -> str:
    """Every error that is raised on purpose, with its exit code and HTTP status."""
    for module in pkgutil.walk_packages(tutti.__path__, "tutti."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return "\n".join(["| error | meaning | exit code | HTTP |", "| --- | --- | --- | --- |", *_errors(TuttiError, 0)])


def _errors(kind: type[TuttiError], depth: int) -> Iterator[str]:
    error = kind.__new__(kind)
    code, status = exit_for(error), status_of(error)
    yield f"| {'&nbsp;&nbsp;' * depth}`{kind.__name__}` | {_first_line(kind)} | {code:d} | {status} |"
    for child in sorted(kind.__subclasses__(), key=lambda each: each.__name__):
        if child.__module__.startswith("tutti."):
            yield from _errors(child, depth + 1)


def job_fields() -> str:
    """Every field of a job file."""
    return "\n\n".join(
        f"### {f'[{name}]' if name else 'the job'}\n\n{_first_line(part)}\n\n{_fields(part)}"
        for name, part in JOB_PARTS.items()
    )


def _fields(struct: type[msgspec.Struct]) -> str:
    defs = msgspec.json.schema(struct)["$defs"]
    schema, notes = defs[struct.__name__], _attributes(struct)
    rows = [
        [f"`{name}`", _kind(field), _default(field, name in schema.get("required", ())), notes.get(name, "")]
        for name, field in _properties(struct, schema).items()
        if name != struct.__struct_config__.tag_field
    ]
    header = ["field", "type", "default", "meaning"]
    columns = 4 if notes else 3
    return "\n".join(f"| {' | '.join(row[:columns])} |" for row in [header, ["---"] * 4, *rows])


def _properties(struct: type[msgspec.Struct], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Schemas by field, of objects and of lists that stand for them."""
    return schema.get("properties") or dict(zip(struct.__struct_fields__, schema["prefixItems"], strict=True))


def _attributes(struct: type) -> dict[str, str]:
    """The `Attributes:` section of a docstring."""
    _, _, section = (inspect.getdoc(struct) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def _kind(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return "choice" if name == "Choice" else f"`{name}`"
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}" if isinstance(field.get("items"), dict) else "list"
    if field.get("type") == "object":
        return "table"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]:g}" for key, sign in limits.items() if abs(field.get(key, 1e16)) < 1e15]
    return " ".join([str(field.get("type", "any")), ", ".join(bounds)]).strip()


def _default(field: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = field.get("default")
    if isinstance(value, Mapping):
        return f"`{value['name']}`" if "name" in value else "as below" if value else "–"
    return "–" if value is None else f"`{json.dumps(value)}`"


WORLD_PARTS = {
    "": world.World,
    "machine": world.Machine,
    "network": world.Network,
    "faults": world.Faults,
    "byzantine": world.Byzantine,
}


def world_fields() -> str:
    """Every field of a world file."""
    return "\n\n".join(
        f"### {f'[{name}]' if name else 'the world'}\n\n{_first_line(part)}\n\n{_fields(part)}"
        for name, part in WORLD_PARTS.items()
    )


def world_choices() -> str:
    """What the fields of a world file can name."""
    parts = []
    for title, registry in (("Distributions", distributions), ("Availability", traces), ("Attacks", attacks)):
        rows = [
            f"| `{name}` | {schema['description']} | {', '.join(f'`{option}`' for option in options_of(schema))} |"
            for name, schema in describe(registry).items()
        ]
        parts.append("\n".join([f"### {title}", "", "| name | what | options |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts).replace("=`", "=…`")


def protocol_messages() -> str:
    """Every message of the node protocol, by direction."""
    parts = []
    for title, union in (
        ("Node to coordinator", messages.NodeMessage),
        ("Coordinator to node", messages.CoordinatorMessage),
    ):
        parts.append(f"## {title}")
        for message in union.__args__:
            parts.append(f"### `{message.__struct_config__.tag}`\n\n{inspect.getdoc(message)}\n\n{_fields(message)}")
    kinds = {message for union in (messages.NodeMessage, messages.CoordinatorMessage) for message in union.__args__}
    parts.append("## Values inside messages")
    for name, struct in _inner_structs(kinds):
        parts.append(f"### {name}\n\n{inspect.getdoc(struct)}\n\n{_fields(struct)}")
    return "\n\n".join(parts)


def _inner_structs(kinds: set[Any]) -> Iterator[tuple[str, Any]]:
    _, components = msgspec.json.schema_components(sorted(kinds, key=lambda kind: kind.__name__))
    outer = {kind.__name__ for kind in kinds}
    known = {name: found for module in (messages, spec, statistics) for name, found in vars(module).items()}
    for name in sorted(components.keys() - outer):
        yield name, known[name]


def protocol_version() -> str:
    return f"Version {messages.PROTOCOL}. A message has at most {messages.MAX_MESSAGE // 1024} KiB."


def protocol_schema() -> str:
    union = messages.NodeMessage | messages.CoordinatorMessage
    schema = msgspec.json.schema(union)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def openapi() -> str:
    """What `/openapi.json` answers; the dashboard's types are made from it."""
    nothing: Any = None
    its = {"members": nothing, "access": nothing, "stats": nothing, "used": nothing}
    core: Any = SimpleNamespace(**its, journal=SimpleNamespace(watchers=[]))
    pairs = (nothing, nothing), (nothing, nothing)
    app = create_app(core, HubFabric(lambda node, secret: None), nothing, nothing, ApiSettings(), *pairs, nothing)
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


def catalog() -> str:
    """What jobs and nodes can name."""
    return "\n\n".join(f"## {kind.capitalize()}\n\n{_catalog_of(kind)}" for kind in KINDS)


def _catalog_of(kind: str) -> str:
    rows = [
        f"| `{name}` | {schema['description']} | {', '.join(f'`{option}`' for option in options_of(schema))} |"
        for name, schema in described(kind).items()
    ]
    return "\n".join(["| name | what | options |", "| --- | --- | --- |", *rows]).replace("=`", "=…`")


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].replace("|", "\\|")


PARTS: Mapping[str, Callable[[], str]] = {
    part.__name__.replace("_", "-"): part
    for part in (
        job_machine,
        node_parts,
        ring_messages,
        commands,
        exit_codes,
        error_tree,
        job_fields,
        world_fields,
        world_choices,
        protocol_messages,
        protocol_version,
        catalog,
    )
}


def rendered(page: str) -> str:
    """The page with every generated part as the code has it now."""
    return re.sub(
        r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> int:
    fresh = {file: rendered(file.read_text()) for file in sorted(DOCS.glob("*.md"))} | {
        SCHEMA_FILE: protocol_schema(),
        OPENAPI_FILE: openapi(),
    }
    stale = [file for file, text in fresh.items() if not file.exists() or file.read_text() != text]
    for file in stale:
        print(f"{'stale, run `make docs`' if '--check' in sys.argv else 'written'}: {file.relative_to(DOCS.parent)}")
        if "--check" not in sys.argv:
            file.write_text(fresh[file])
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
