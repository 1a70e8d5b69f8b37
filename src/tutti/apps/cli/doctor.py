"""`doctor`: says which of address, clock, version, token, data and disk is wrong, and what to do about it."""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import Exit, exit_for
from tutti.apps.cli.options import DEFAULT_URL, ExistingFile, Folder, as_json, operator_token, print_json
from tutti.core.errors import TuttiError, UserError

if TYPE_CHECKING:
    import httpx

SECONDS = 5.0
SKEW_ALLOWED = 5.0
DISK_NEEDED = 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` and `code` count only if it is wrong."""

    what: str
    ok: bool
    said: str
    advice: str = ""
    code: int = Exit.OK


@click.command()
@click.argument("link_or_url", default=DEFAULT_URL, envvar="TUTTI_URL")
@click.option("--data", "source", help="A data source to read, as for `tutti join`.")
@click.option("--dir", "folder", type=Folder, default=".", show_default=True, help="Folder whose disk is looked at.")
@click.option("--token-file", type=ExistingFile, envvar="TUTTI_TOKEN_FILE", help="File with the operator's token.")
@click.option("--ca", type=ExistingFile, help="Certificate authority of the coordinator's certificate.")
@as_json
def doctor(
    link_or_url: str, source: str | None, folder: Path, token_file: Path | None, ca: Path | None, as_json: bool
) -> None:
    """Find out what is wrong, and what to do about it.

    Looks at the address, the clock, the version, the token, the data and the disk, and changes nothing: a join
    link is not used up. The exit code is that of the first wrong line.

    \b
    Examples:
      tutti doctor
      tutti doctor 'https://host:8000/join#token' --data csv:path=mine.csv,target=died
      tutti doctor https://host:8000 --token-file operator-token --ca ca.pem
    """
    findings = []
    for finding in _examine(link_or_url, source, folder, token_file, ca):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    wrong = next((finding for finding in findings if not finding.ok), None)
    if wrong is not None:
        click.get_current_context().exit(wrong.code)


def _print_finding(finding: Finding) -> None:
    mark = click.style("ok   ", fg="green") if finding.ok else click.style("wrong", fg="red")
    click.echo(f"{finding.what:<8} {mark}  {finding.said}")
    if finding.advice:
        click.echo(f"{'':<8}        {finding.advice}")


def _examine(
    link: str, source: str | None, folder: Path, token_file: Path | None, ca: Path | None
) -> Iterator[Finding]:
    address = examine_address(link)
    yield address
    if address.ok:
        yield from _examine_coordinator(link, token_file, ca)
    if source is not None:
        yield examine_data(source)
    yield examine_disk(folder)


def examine_address(link: str) -> Finding:
    """Whether something listens there."""
    from tutti.apps.nodes import split_link

    try:
        url, _ = split_link(link)
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except (UserError, ValueError) as error:
        return Finding("address", False, str(error), "copy the whole link that `tutti up` printed", Exit.USAGE)
    host = parts.hostname or ""
    try:
        with closing(socket.create_connection((host, port), SECONDS)):
            return Finding("address", True, f"{host} port {port} answers")
    except socket.gaierror:
        said, advice = f"the name {host!r} is not known here", "check its spelling, or use the IP address"
    except ConnectionRefusedError:
        said = f"{host} is there, and nothing listens on port {port}"
        advice = "start the coordinator (`tutti up`), with --host 0.0.0.0 if it is another machine"
    except OSError as error:
        said = f"{host} port {port} does not answer: {error.strerror or error}"
        advice = "check the network, and whether a firewall lets the port through"
    return Finding("address", False, said, advice, Exit.UNREACHABLE)


def _examine_coordinator(link: str, token_file: Path | None, ca: Path | None) -> Iterator[Finding]:
    import httpx

    from tutti.apps.client import trust
    from tutti.apps.nodes import split_link

    url, join_token = split_link(link)
    verify = trust(ca) if url.startswith("https") else False
    with httpx.Client(base_url=url, verify=verify, timeout=SECONDS, trust_env=False) as http:
        try:
            before = time.time()
            health = http.get("/health")
            after = time.time()
            if health.status_code in (502, 503, 504):
                said = f"who answers has no coordinator behind it (HTTP {health.status_code})"
                advice = "start one, or wait until another has taken over"
                yield Finding("answer", False, said, advice, Exit.UNREACHABLE)
                return
            known = http.get("/openapi.json").json()["info"]
            title, version = known["title"], known["version"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            advice = "give --ca with the authority of its certificate" if "CERTIFICATE" in str(error) else ""
            advice = advice or "check the port, and http or https"
            yield Finding("answer", False, f"what answers is no coordinator: {error!s:.200}", advice, Exit.UNREACHABLE)
            return
        if title != "Tutti":
            yield Finding("answer", False, f"{title!r} answers", "check the port", Exit.UNREACHABLE)
            return
        yield examine_clock(health.headers.get("date", ""), (before + after) / 2)
        yield examine_version(version)
        yield examine_token(http, join_token, operator_token(token_file))


def examine_clock(date: str, now: float) -> Finding:
    """Compare the `Date` of an answer, which has whole seconds, with this machine's clock."""
    from email.utils import parsedate_to_datetime

    try:
        ahead = now - parsedate_to_datetime(date).timestamp() - 0.5
    except ValueError:
        return Finding("clock", False, "the coordinator does not say its time", "is there a proxy between?", Exit.USAGE)
    direction = "ahead of" if ahead > 0 else "behind"
    said = f"{text.duration(abs(ahead))} {direction} the coordinator's"
    if abs(ahead) <= SKEW_ALLOWED:
        return Finding("clock", True, "agrees with the coordinator's")
    return Finding("clock", False, said, "set both clocks by NTP", Exit.CONFLICT)


def examine_version(theirs: str) -> Finding:
    from tutti.version import __version__

    if theirs.split(".")[:2] == __version__.split(".")[:2]:
        return Finding("version", True, f"{theirs} there, {__version__} here")
    return Finding("version", False, f"{theirs} there, {__version__} here", "install the same version", Exit.CONFLICT)


def examine_token(http: "httpx.Client", join_token: str | None, token: str | None) -> Finding:
    """Whether the operator's token, or a link's, opens the door; trying a join link does not use it up."""
    if join_token is not None:
        return _examine_join_token(http, join_token)
    answer = http.get("/api/v1/status", headers={"authorization": f"Bearer {token}"} if token else {})
    if answer.is_success:
        return Finding("token", True, "the operator's is right" if token else "none is needed here")
    advice = "give --token-file with the file that `tutti up` named" if not token else "copy the file again"
    return Finding("token", False, _detail(answer), advice, Exit.REFUSED)


def _examine_join_token(http: "httpx.Client", token: str) -> Finding:
    answer = http.post("/api/v1/invites/check", json={"token": token})
    if answer.is_success:
        return Finding("token", True, "the join link is good")
    return Finding("token", False, _detail(answer), "ask for a new link (`tutti invite`)", Exit.REFUSED)


def _detail(answer: "httpx.Response") -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


def examine_data(source: str) -> Finding:
    from tutti.apps.nodes import load_data
    from tutti.core.registry import Choice

    try:
        data = load_data(Choice.parse(source))
    except TuttiError as error:
        return Finding("data", False, str(error), "correct the file or the --data option", exit_for(error))
    one = f", all of class {data.train.y[0]}" if len(set(data.train.y.ravel().tolist())) == 1 else ""
    said = f"{data.name}: {len(data.train)} examples to train on, {len(data.held_out)} held out"
    return Finding("data", True, f"{said}, {_schema(data)}{one}")


def _schema(data: Any) -> str:
    shape = "x".join(map(str, data.schema.shape))
    return f"{shape} features, {data.schema.outputs} {'classes' if data.schema.task == 'classification' else 'targets'}"


def examine_disk(folder: Path) -> Finding:
    """Free space where the folder is, or will be."""
    place = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    said = f"{text.size(free)} free at {place}"
    if free >= DISK_NEEDED:
        return Finding("disk", True, said)
    return Finding("disk", False, said, f"make room: {text.size(DISK_NEEDED)} should be free", Exit.STORAGE)
