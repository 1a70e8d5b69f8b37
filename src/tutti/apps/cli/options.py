"""Options that many commands share: how to reach a coordinator, and machine-readable output."""

import re
from collections.abc import Callable, Iterable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tutti.core.errors import NotFound, UserError

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.services.views import JobView

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8000"


class FiniteRange(click.FloatRange):
    """A number within bounds; click's own range takes NaN, which no bound refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{number} is not in the range {self._describe_range()}.", param, ctx)
        return number


File = click.Path(path_type=Path, dir_okay=False)
ExistingFile = click.Path(path_type=Path, dir_okay=False, exists=True)
Folder = click.Path(path_type=Path, file_okay=False)

allow_module = click.option(
    "--allow-module",
    "allow_modules",
    multiple=True,
    metavar="PATTERN",
    envvar="TUTTI_ALLOW_MODULES",
    show_envvar=True,
    help="A Python module that a model may name to be imported here, such as hospital.models or hospital.*; may be "
    "repeated.  [default: none]",
)

signer_option = click.option(
    "--signer",
    "signers",
    multiple=True,
    metavar="NODE=ADDRESS",
    help="This node's updates must be signed by the key of this address; may be repeated.",
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def named_signers(texts: Iterable[str]) -> dict[str, str]:
    """The addresses by node of `signer_option`."""
    found = dict[str, str]()
    for text in texts:
        node, _, address = text.partition("=")
        if not re.fullmatch(r"0x[0-9a-fA-F]{40}", address):
            raise click.BadParameter(f"expected a node and an address, as in clinic-a=0x7099…, came {text!r}")
        found[node] = address.lower()
    return found


def reaching(command: F) -> F:
    """Add the options that say where the coordinator is: `url` (None if not given), `token_file` and `ca`."""
    for option in (
        click.option("--ca", type=ExistingFile, help="Certificate authority of the coordinator's certificate."),
        click.option(
            "--token-file",
            type=ExistingFile,
            envvar="TUTTI_TOKEN_FILE",
            show_envvar=True,
            help="File with the operator's token; not needed for a coordinator that listens on its own machine only. "
            "TUTTI_TOKEN works too.",
        ),
        click.option(
            "--url", envvar="TUTTI_URL", show_envvar=True, help=f"The coordinator's address.  [default: {DEFAULT_URL}]"
        ),
    ):
        command = option(command)
    return command


def with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `reaching`, and pass an open Client as the first argument instead of them."""

    @reaching
    @wraps(command)
    def connected(*args: Any, url: str | None, token_file: Path | None, ca: Path | None, **rest: Any) -> None:
        with open_client(url or DEFAULT_URL, token_file, ca) as client:
            command(client, *args, **rest)

    return connected


def open_client(url: str, token_file: Path | None = None, ca: Path | None = None) -> "Client":
    """A client of the coordinator at `url`; raises UserError for what is no address."""
    from tutti.apps.client import Client
    from tutti.apps.nodes import is_broker, split_link

    try:
        if is_broker(url):
            raise UserError("a broker has no API")
        address, _ = split_link(url)
    except (UserError, ValueError):
        raise UserError(f"expected a coordinator's address such as {DEFAULT_URL}, came {url!r}") from None
    return Client(address, operator_token(token_file), ca=ca)


def operator_token(file: Path | None) -> str | None:
    """The token in the file, or in the environment variable TUTTI_TOKEN."""
    import os

    if file is None:
        return os.environ.get("TUTTI_TOKEN")
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the token file {file}: {error}") from None


def find_job(client: "Client", reference: str) -> "JobView":
    """A job by its id, or the newest of that name; raises NotFound."""
    try:
        return client.job(reference)
    except NotFound:
        named = next(client.jobs(name=reference), None)
        if named is None:
            raise NotFound(f"there is no job with the id or name {reference!r}: see `tutti jobs ls`") from None
        return named


def print_json(value: object) -> None:
    """A view, or a list of them, as indented JSON."""
    import msgspec

    plain = list(value) if isinstance(value, Iterable) and not isinstance(value, dict | str) else value
    click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())
