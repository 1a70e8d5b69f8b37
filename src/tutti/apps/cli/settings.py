"""Settings from the command line, the environment and a file, in this order; and what no coordinator may be set to."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from tutti.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

OTHERWISE = {"data_dir": "TUTTI_COORDINATOR_DIR"}
"""Variables that are not called as their option is; TUTTI_DATA_DIR is where data sets lie."""

NOT_SETTINGS = frozenset({"config", "as_json", "until_eof", "help"})

SETTINGS_FILE = "tutti.settings-file"

WELL_KNOWN = frozenset(
    ("guest", "postgres", "root", "admin", "tutti", "test", "secret", "password", "changeme", "change-me", "default")
)
"""Passwords that installers and examples use: whoever can reach a server that has one is in."""


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
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if "://" not in text or "@" not in text:
        return text
    scheme, _, rest = text.partition("://")
    who, _, where = rest.rpartition("@")
    return f"{scheme}://{who.partition(':')[0]}{':***' if ':' in who else ''}@{where}"


def check_password(name: str, url: str) -> None:
    """Raise UserError for an address of another machine with a password that everybody knows."""
    from tutti.apps.api.settings import is_loopback

    try:
        parts = urlsplit(url)
        host, password = parts.hostname, parts.password
    except ValueError as error:
        raise UserError(f"--{name}: {error}") from None
    if host and not is_loopback(host) and password is not None and password.lower() in WELL_KNOWN:
        raise UserError(
            f"--{name}: the password for {host} is one that everybody knows ({shown(url)}): give the server another"
        )


def check_redis(url: str) -> None:
    """Raise UserError for what is no address of a Redis, and for one on another machine that lets everybody in."""
    from tutti.apps.api.settings import is_loopback

    parts = urlsplit(url)
    if url and (parts.scheme not in ("redis", "rediss") or not parts.hostname):
        raise UserError(f"--redis: expected an address such as rediss://:password@host:6379/0, came {shown(url)!r}")
    if parts.hostname and not is_loopback(parts.hostname) and not parts.password:
        raise UserError(
            f"--redis: {parts.hostname} is another machine, and the address has no password: set one there "
            "(`requirepass`), for whoever reaches it could speak as a coordinator"
        )
