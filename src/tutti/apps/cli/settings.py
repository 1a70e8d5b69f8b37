"""Settings from the command line, the environment and a file, in this order."""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from tutti.adapters import addresses
from tutti.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

OTHERWISE = {"data_dir": "TUTTI_COORDINATOR_DIR"}
"""Variables that are not called as their option is; TUTTI_DATA_DIR is where data sets lie."""

NO_OPTIONS = ("CONFIG", "DATA_DIR", "LINK", "LOG", "TOKEN", "TOKEN_FILE", "URL")
"""Variables TUTTI_… that mean something, but no option of `tutti up`."""

NOT_SETTINGS = frozenset({"config", "as_json", "until_eof", "help"})

SETTINGS_FILE = "tutti.settings-file"


def configurable(command: F) -> F:
    """Let every option of a command be set by a variable TUTTI_NAME and by the TOML file of `--config` too."""
    for param in getattr(command, "__click_params__", ()):
        if isinstance(param, click.Option) and param.name not in NOT_SETTINGS and param.envvar is None:
            param.envvar = OTHERWISE.get(str(param.name), f"TUTTI_{str(param.name).upper()}")
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        envvar="TUTTI_CONFIG",
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="Settings in a TOML file, named as these options are: `port = 9000`. Every option can also be a variable, "
        "such as TUTTI_PORT; `tutti config show` says what counts.",
    )(command)


def _read(ctx: click.Context, param: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the settings file {file}: {error}") from None
    ctx.meta[SETTINGS_FILE] = file
    ctx.default_map = dict(_checked(ctx, file, table))


def _checked(ctx: click.Context, file: Path, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    known = {spelled(param): param for param in settings_of(ctx.command)}
    for name, value in table.items():
        param = known.get(name.replace("_", "-"))
        if param is None:
            raise UserError(f"{file}: there is no setting {name!r}; choose from: {', '.join(sorted(known))}")
        shape = isinstance(value, list), isinstance(value, bool)
        if isinstance(value, dict) or shape != (param.multiple, param.is_flag):
            wanted = "a list" if param.multiple else "true or false" if param.is_flag else param.type.name
            raise UserError(f"{file}: {name}: expected {wanted}, came {value!r}")
        try:
            param.type_cast_value(ctx, value)
        except click.BadParameter as error:
            raise UserError(f"{file}: {name}: {error.message}") from None
        yield str(param.name), value


def check_variables(command: click.Command, environment: Iterable[str]) -> None:
    """Raise UserError for a variable that must be a misspelt setting: it would count for nothing, and nobody know."""
    known = [str(param.envvar).removeprefix("TUTTI_") for param in settings_of(command)] + [*NO_OPTIONS]
    for name in sorted(environment):
        meant = name.removeprefix("TUTTI_")
        if meant == name or meant in known:
            continue
        bare = meant.removesuffix("_URL")  # what many programs call their addresses
        if near := [bare] if bare in known else get_close_matches(meant, known, 1, 0.75):
            raise UserError(f"there is no setting {name}: is TUTTI_{near[0]} meant?")


def settings_of(command: click.Command) -> list[click.Option]:
    """The options that are settings, in order."""
    return [p for p in command.params if isinstance(p, click.Option) and p.name not in NOT_SETTINGS]


def spelled(param: click.Option) -> str:
    """The name of a setting in a file: that of its option."""
    return param.opts[0].removeprefix("--")


def origin(ctx: click.Context, param: click.Option) -> str:
    """Where a value comes from, for a person."""
    match ctx.get_parameter_source(str(param.name)):
        case ParameterSource.COMMANDLINE:
            return "command line"
        case ParameterSource.ENVIRONMENT:
            return f"environment {param.envvar}"
        case ParameterSource.DEFAULT_MAP:
            return str(ctx.meta[SETTINGS_FILE])
        case _:
            return "default"


def shown(value: Any) -> str:
    """A value without the password that an address may hold."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else addresses.shown(str(value))
