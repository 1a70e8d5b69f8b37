"""`up`, `join` and `invite`: the two long-running processes, and how the second finds the first."""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from tutti.apps.certificates import check_certificate, check_key
from tutti.apps.cli.addresses import check_addresses
from tutti.apps.cli.logs import LOG_FORMAT, log_to_stderr
from tutti.apps.cli.options import ExistingFile, FiniteRange, Folder, allow_module, as_json, print_json, with_client
from tutti.apps.cli.settings import check_variables, configurable
from tutti.apps.secrets import read_secret
from tutti.core.errors import UserError

if TYPE_CHECKING:
    from tutti.apps.bootstrap import CoordinatorSettings, Ready
    from tutti.apps.client import Client

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

HOLDS = "What this node trains on, such as digits:part=0/4; `sessions` for parts of tables that others upload."


def _remember(ctx: click.Context, param: click.Parameter, form: str) -> str:
    """For whoever says why the program ended, be it that another option is wrong."""
    ctx.ensure_object(dict)[LOG_FORMAT] = form
    return form


log_format = click.option(
    "--log-format",
    is_eager=True,
    callback=_remember,
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="TUTTI_LOG_FORMAT",
    help="Messages on standard error for people, or as JSON, one object a line, with job, round and node.",
)
until_eof = click.option("--until-eof", is_flag=True, hidden=True, help="End when standard input closes.")


@click.command()
@configurable
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every one.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0: any free port.")
@click.option("--data-dir", type=Folder, default="tutti-data", show_default=True, help="Event log and models.")
@click.option(
    "--database",
    default="",
    metavar="URL",
    help="Events and accounts in PostgreSQL: postgresql://user@host/name.  [default: in the data directory]",
)
@click.option(
    "--blobs",
    default="",
    metavar="URL",
    help="Models in a bucket: s3://bucket/prefix?endpoint=https://host; its key comes from AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY.  [default: in the data directory]",
)
@click.option(
    "--broker",
    default="",
    metavar="URL",
    help="Let nodes come by way of RabbitMQ too: amqps://user:password@host/vhost.",
)
@click.option("--broker-ca", type=ExistingFile, help="Certificate authority of the broker's certificate.")
@click.option(
    "--standby",
    is_flag=True,
    envvar="TUTTI_STANDBY",
    show_envvar=True,
    help="Wait while another coordinator owns the database, and take over when it is gone (docs/replicas.md).",
)
@click.option(
    "--redis",
    default="",
    metavar="URL",
    help="With --standby: work for the coordinator that owns the database meanwhile, over Redis: "
    "rediss://:password@host:6379/0 (docs/replicas.md).",
)
@click.option(
    "--replica-url",
    default="",
    metavar="URL",
    help="With --redis: the address at which other coordinators reach this one.  [default: that of --host and --port]",
)
@click.option(
    "--public-url",
    default="",
    metavar="URL",
    envvar="TUTTI_PUBLIC_URL",
    show_envvar=True,
    help="The address that nodes are given, such as a load balancer's.  [default: that of --host and --port]",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="NETWORK",
    help="Load balancers, and with --redis other replicas: who called them (X-Forwarded-For) is who calls, for the "
    "limit on wrong passwords and the audit log; may be repeated, such as 10.1.0.0/16.  [default: 127.0.0.1]",
)
@click.option("--tls-cert", type=ExistingFile, help="Certificate chain (PEM).")
@click.option("--tls-key", type=ExistingFile, help="Its private key (PEM), if it is in another file.")
@click.option("--auth", is_flag=True, help="Ask for a token or an account on this machine too.")
@click.option(
    "--audited",
    type=FiniteRange(0, 1),
    help="Share of browsers' updates on public rows that are computed again (needs the extra 'audit').  "
    "[default: 0.1, with that extra]",
)
@click.option(
    "--max-nodes",
    type=click.IntRange(1, 1_000_000),
    default=12_000,
    show_default=True,
    help="Nodes that may be connected to this coordinator at once; further ones are told to try later.",
)
@click.option(
    "--heartbeat",
    type=FiniteRange(0.1, 3600),
    default=15.0,
    show_default=True,
    help="Seconds between signs of life of a node; one that is silent for three of them is disconnected.",
)
@click.option(
    "--keep-models",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Newest models of a job that stay in the store, beside the first and the best.",
)
@click.option(
    "--keep-days",
    type=FiniteRange(0),
    help="After so many days only the final and the best model of a job that is over stay.  [default: never]",
)
@click.option(
    "--jwt-secret-file",
    type=ExistingFile,
    help="What signs access tokens: 32 random characters or more, the same for all replicas.  "
    "[default: made at the first start]",
)
@click.option(
    "--operator-token-file",
    type=ExistingFile,
    help="The operator's token: 32 random characters or more, the same for all replicas.  "
    "[default: made at the first start]",
)
@click.option(
    "--ledger-key-file",
    type=ExistingFile,
    help="What signs the ledger's entries: 64 hex digits, the same for all replicas, and never changed.  "
    "[default: made at the first start]",
)
@allow_module
@log_format
@as_json
@until_eof
def up(as_json: bool, until_eof: bool, log_format: str, **settings: Any) -> None:
    """Start a coordinator.

    It listens on this machine only, unless --host says otherwise; then, and once there are accounts, an operator's
    token or an account is needed. The token is made at the first start and kept in the data directory. Ends at
    ctrl-C or SIGTERM; started again with the same data directory, it goes on where it stopped.

    \b
    Examples:
      tutti up
      tutti up --host 0.0.0.0 --tls-cert server.pem --tls-key server.key
      tutti up --port 0 --data-dir /srv/tutti --json
      tutti up --config coordinator.toml --log-format json
      tutti up --broker 'amqps://user:password@broker/vhost?coordinator=main'
      tutti up --database postgresql://tutti@db/tutti --blobs 's3://models?endpoint=https://store:9000'
      tutti up --standby --public-url https://tutti.example.org --database … --blobs …
      tutti up --standby --redis rediss://:password@cache/0 --public-url … --database … --blobs …
    """
    from tutti.apps.bootstrap import CoordinatorSettings

    log_to_stderr(log_format)
    checked(settings)
    for name in ("public_url", "replica_url"):
        settings[name] = _address(name, settings[name])
    if until_eof:
        _end_at_eof()
    _serve(
        CoordinatorSettings(
            **settings,
            on_ready=lambda ready: _announce(ready, as_json),
            on_standby=lambda: click.echo("standing by: another coordinator owns the database", err=True),
        )
    )


def _address(name: str, given: str) -> str:
    """An address without a path, and without the slash at its end."""
    parts = urlsplit(given)
    if given and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query):
        option = name.replace("_", "-")
        raise click.UsageError(f"--{option}: expected an address such as https://tutti.example.org, came {given!r}")
    return given.rstrip("/")


def checked(settings: Mapping[str, Any]) -> None:
    """Raise what is wrong with settings that are well-formed one by one; no store is opened, and nothing made."""
    from tutti.apps.bootstrap import check_data_folder

    if settings["tls_key"] and not settings["tls_cert"]:
        raise click.UsageError("--tls-key needs --tls-cert")
    if settings["standby"] and not (settings["database"] and settings["blobs"]):
        raise click.UsageError("--standby needs --database and --blobs: coordinators share nothing else")
    if settings["redis"] and not settings["standby"]:
        raise click.UsageError("--redis is for coordinators that stand in for each other: give --standby too")
    for name in ("public_url", "replica_url"):
        _address(name, settings[name])
    check_variables(up, os.environ)
    check_addresses(settings)
    if settings["tls_cert"]:
        check_certificate(settings["tls_cert"])
        check_key(settings["tls_cert"], settings["tls_key"])
    for secret in ("jwt_secret_file", "operator_token_file", "ledger_key_file"):
        if settings[secret]:
            read_secret(settings[secret])
    check_data_folder(settings["data_dir"])


def _serve(settings: "CoordinatorSettings") -> None:
    from tutti.apps.bootstrap import serve

    _run(serve(settings))


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # Windows
        import asyncio

        asyncio.run(work)
    else:
        uvloop.run(work)


def _announce(ready: "Ready", as_json: bool) -> None:
    token_file = ready.operator_token_file
    if as_json:
        facts = {"url": ready.url, "token_file": token_file and str(token_file)}
        facts |= {"join_link": ready.join_link} if ready.join_link else {}
        facts |= {"broker_link": ready.broker_link} if ready.broker_link else {}
        click.echo(json.dumps(facts))
        return
    click.echo(f"coordinator  {ready.url}  (dashboard; API: {ready.url}/docs)")
    if ready.join_link:
        click.echo(f"join link    {ready.join_link}")
    if ready.broker_link:
        click.echo(f"broker link  {ready.broker_link}  (the same; put in the user and password of the node)")
    click.echo(
        "             for one node, within a day; `tutti invite` makes more"
        if ready.join_link
        else "join link    `tutti invite` makes one"
    )
    if token_file is not None:
        click.echo(f"token file   {token_file}  (the operator's: give it to tutti with --token-file)")
        if ready.url.startswith("http:"):
            click.echo("warning      without --tls-cert, tokens and models cross the network in the clear", err=True)


@click.command()
@click.argument("link", envvar="TUTTI_LINK")
@click.option("--data", "source", help=HOLDS)
@click.option(
    "--worker", is_flag=True, help="Lend this machine to the compute market, too, or only: --data may be left out."
)
@click.option("--stake", type=click.IntRange(1), default=100, show_default=True, help="Tokens at risk, with --worker.")
@click.option("--price", type=click.IntRange(1), default=1, show_default=True, help="The least reward, with --worker.")
@click.option("--kind", "kinds", multiple=True, help="A kind of compute job to take, may be repeated.  [default: all]")
@click.option("--owner", default="", help="Whose machine it is: no two replicas of a job go to one owner.")
@click.option("--name", help="What the node is called.  [default: this machine's name]")
@click.option("--policy", type=ExistingFile, help="The owner's limits (TOML); no coordinator can override them.")
@allow_module
@click.option("--state-dir", type=Folder, help="Where the node's secret is kept.  [default: ~/.local/state/tutti/…]")
@click.option("--ca", type=ExistingFile, help="Certificate authority of the coordinator's certificate.")
@click.option("--compress", is_flag=True, help="Compress updates on the way.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5001, show_default=True, help="On a ring: where to listen."
)
@log_format
@as_json
@until_eof
def join(
    link: str,
    source: str | None,
    worker: bool,
    name: str | None,
    state_dir: Path | None,
    port: int,
    as_json: bool,
    until_eof: bool,
    log_format: str,
    **rest: Any,
) -> None:
    """Take part with this machine's data, which stays on it.

    Only makes outbound connections, and reconnects by itself. The secret that the link buys is kept, so the
    same command starts the node again, even with a link that is used up. LINK may also be the plain address of a
    coordinator that was joined before; the variable TUTTI_LINK does for it, which other users of the machine do not
    see. Ends at ctrl-C or SIGTERM.

    \b
    Examples:
      tutti join 'http://host:8000/join#token' --data digits:part=0/4,partition=dirichlet:0.3
      tutti join 'https://host:8000/join#token' --data csv:path=mine.csv,target=died --name clinic-a
      tutti join 'https://host:8000/join#token' --data npz:path=scans.npz --policy policy.toml
      tutti join thrift://127.0.0.1:9091 --data csv:path=mine.csv,target=died --port 5001
      tutti join 'http://host:8000/join#token' --data sessions --name peer-1
      tutti join 'amqps://user:password@broker/vhost?coordinator=main#token' --data csv:path=mine.csv,target=died
      tutti join 'https://host:8000/join#token' --worker --stake 150
    """
    import asyncio

    from tutti.apps.nodes import NodeSettings, run_node, split_link
    from tutti.core.registry import Choice
    from tutti.wire.messages import Offer

    offered = {option: rest.pop(option) for option in ("stake", "price", "kinds", "owner")}
    if source is None and not worker:
        raise click.UsageError("--data says what this node trains on; without data it can be a --worker")
    if link.startswith("thrift:"):
        if source is None or worker:
            raise click.UsageError("a ring has no compute market: leave --worker out, and give --data")
        _join_ring(link, source, name, state_dir, port, as_json, rest)
        return
    url, _ = split_link(link)
    name = name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._") or "node"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise click.BadParameter(f"letters, digits, '.', '_' and '-' make a name, not {name!r}", param_hint="--name")
    settings = NodeSettings(
        link=link,
        data=Choice.parse(source) if source is not None else None,
        offer=Offer(**offered) if worker else None,
        name=name,
        state_dir=state_dir or _state_dir(name, url),
        on_connected=_announcer(name, as_json),
        **rest,
    )
    log_to_stderr(log_format)
    if until_eof:
        _end_at_eof()
    asyncio.run(until_signalled(run_node(settings)))


def _join_ring(
    link: str, source: str, name: str | None, state_dir: Path | None, port: int, as_json: bool, rest: Mapping[str, Any]
) -> None:
    """Be a member of a ring, as `tutti ring node` is."""
    from tutti.apps.cli.ring import run_member
    from tutti.apps.ringclient import named

    try:
        host, supernode_port = urlsplit(link).hostname, urlsplit(link).port
    except ValueError:
        host = None
    if not host or not supernode_port:
        raise UserError(f"expected a ring's supernode such as thrift://127.0.0.1:9091, came {link!r}")
    if name or rest["ca"] or rest["compress"]:
        raise click.UsageError("--name, --ca and --compress are not for rings; see `tutti ring node --help` for TLS")
    run_member(
        port,
        (named(host, supernode_port),),
        host=None,
        source=source,
        policy=rest["policy"],
        allow_modules=rest["allow_modules"],
        state_dir=state_dir,
        insecure=False,
        as_json=as_json,
        tls_cert=None,
        tls_key=None,
        tls_ca=None,
    )


def _state_dir(name: str, url: str) -> Path:
    """One folder for each name and coordinator, so that several nodes on one machine do not share a secret."""
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return root / "tutti" / f"{name}@{urlsplit(url).netloc.replace(':', '_')}"


def _announcer(name: str, as_json: bool) -> Callable[[str, str], None]:
    """Says once that the node is connected: whoever started it may count on it from then on."""
    said = False

    def announce(url: str, signs_as: str) -> None:
        nonlocal said
        if not said:
            said = True
            click.echo(
                json.dumps({"node": name, "url": url, "signs_as": signs_as})
                if as_json
                else f"node {name}: connected to {url}, signs as {signs_as}; ctrl-C ends it"
            )

    return announce


@click.command()
@click.option("--uses", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many nodes may join.")
@click.option("--ttl", default="24h", show_default=True, help="How long it is good for: 90s, 15m, 24h, 7d.")
@as_json
@with_client
def invite(client: "Client", uses: int, ttl: str, as_json: bool) -> None:
    """Make a join link.

    \b
    Examples:
      tutti invite
      tutti invite --uses 10 --ttl 7d
    """
    invitation = client.invite(uses=uses, seconds=_seconds(ttl))
    if as_json:
        print_json(invitation)
    else:
        click.echo(invitation.link)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"expected a time such as 90s, 15m, 24h or 7d, came {text!r}", param_hint="--ttl")
    return float(found[1]) * UNITS[found[2]]


# -- processes that run until they are told to stop ----------------------------------------------------


async def until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run it; SIGINT and SIGTERM end it cleanly."""
    import asyncio
    import contextlib

    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _end_at_eof() -> None:
    """Tie this process to the one that holds the other end of its standard input, however that one dies."""
    import threading

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
