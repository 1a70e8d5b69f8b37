"""A coordinator put together: with `nodes`, the only place where adapters meet services."""

import contextlib
import errno
import gc
import logging
import os
import secrets
import signal
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tutti.apps.nodes import split_link
from tutti.apps.secrets import write_secret
from tutti.core.errors import Conflict, StorageError, UserError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.trace import Tracer

    from tutti.adapters.blobs.directory import DirectoryBlobs
    from tutti.adapters.fabrics.broker import BrokerFabric
    from tutti.adapters.fabrics.bucket import BucketDepot
    from tutti.adapters.ledgers.signed import SignedLedger
    from tutti.adapters.logs.postgres import PostgresLog
    from tutti.apps.replicas import Front
    from tutti.ports import EventLog, Fabric
    from tutti.ports.accounts import AccountStore
    from tutti.ports.ledger import Ledger
    from tutti.services.coordinator import Coordinator

log = logging.getLogger(__name__)

AUDITED = 0.1

INVITE_SECONDS = 24 * 3600.0
SHUTDOWN_SECONDS = 3
NO_LEDGER = (
    "coordinators that stand in for each other pay once they sign with the same key: start each with --ledger-key-file"
)


@dataclass(frozen=True, slots=True)
class Ready:
    """A coordinator that answers: its address, a link for one node, and where the operator's token lies.

    There is no link from one that stands in for others. `broker_link` is that link by way of the broker, without the
    name and password that the node needs there.

    No token is needed, and none is named, while it listens on loopback only and nobody has an account.
    """

    url: str
    join_link: str
    operator_token_file: Path | None
    broker_link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """What `tutti up` needs to know.

    `allow_modules`: glob patterns of Python modules that jobs may have imported. `auth`: ask callers to prove who
    they are on loopback too. `database` is a PostgreSQL address for events and accounts, `blobs` one of a bucket for
    models; what is not given is kept in the data directory. `broker` is an AMQP address by which nodes can come too.
    `standby`: wait while another coordinator owns the database; with `redis`, an address, work for it meanwhile.
    `public_url`: the address that nodes are given, if it is another's, such as a load balancer's; `replica_url`: the
    one at which other replicas reach this one; `trusted_proxies`: addresses and networks of load balancers and
    replicas, who say whom they pass on.
    `keep_models`: how many of a job's newest models stay; `keep_days`: after how long only the final and the best one
    of a job that is over do.
    `audited`: the share of browsers' updates on public rows that are computed again, which takes wasmtime; None: a
    tenth, if that is installed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = Path("tutti-data")
    database: str = ""
    blobs: str = ""
    broker: str = ""
    broker_ca: Path | None = None
    standby: bool = False
    redis: str = ""
    public_url: str = ""
    replica_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    auth: bool = False
    allow_modules: tuple[str, ...] = ()
    audited: float | None = None
    max_nodes: int = 12_000
    heartbeat: float = 15.0  # seconds
    keep_models: int = 20
    keep_days: float | None = None
    jwt_secret_file: Path | None = None
    operator_token_file: Path | None = None
    ledger_key_file: Path | None = None
    on_ready: Callable[[Ready], None] | None = None
    on_standby: Callable[[], None] = lambda: None

    @property
    def pays(self) -> bool:
        """Whether there is a ledger that lasts: a standby that takes over must be able to go on with it."""
        return not self.standby or self.ledger_key_file is not None

    def url(self, port: int) -> str:
        """The address that nodes are given."""
        return self.public_url or self.own_url(port)

    def own_url(self, port: int) -> str:
        """The address of this process."""
        return f"{'https' if self.tls_cert else 'http'}://{_reachable(self.host)}:{port}"


async def serve(settings: CoordinatorSettings) -> None:
    """Run a coordinator until SIGINT or SIGTERM; raises UserError or StorageError if it cannot start.

    Raises BackgroundFailure if a part of it died on the way: half a coordinator would look well and do nothing, so
    the process ends, and whoever supervises it starts it again; likewise LogLost when another one has taken over.
    """
    import uvicorn

    from tutti.adapters.tracing import tracing
    from tutti.apps.replicas import Front, Stopped
    from tutti.apps.server import Server
    from tutti.apps.sockets import Sockets

    listener = _listen(settings.host, settings.port, listen=not settings.standby or bool(settings.redis))
    port = listener.getsockname()[1]
    front = Front()
    server = Server(
        uvicorn.Config(
            front,
            log_config=None,
            access_log=False,
            http="httptools",
            ws=Sockets,
            ws_per_message_deflate=False,
            ws_max_size=1 << 20,
            ws_ping_interval=None,  # nodes send heartbeats
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            timeout_keep_alive=75,
            server_header=False,
            forwarded_allow_ips=["127.0.0.1", *settings.trusted_proxies],
            lifespan="off",
        )
    )
    front.serve = lambda: server.serve(sockets=[listener])
    with contextlib.closing(listener), contextlib.suppress(Stopped), tracing("tutti-coordinator") as tracer:
        token_file, token = operator_token(settings)
        async with contextlib.aclosing(front), coordinator(settings, port, token, tracer, front) as (core, app):
            shown = token_file if app.state.identify.needed else None
            core.background.failed.add_done_callback(lambda _: server.handle_exit(signal.SIGTERM, None))
            spare_the_collector()
            front.owned = app
            if front.serving is None:
                server.on_ready = lambda: _announce(core, settings, port, shown)
                await front.serve()
            else:
                await _announce(core, settings, port, shown)
                await front.serving
            if core.background.failed.done():
                raise core.background.failed.result()


def spare_the_collector() -> None:
    """What exists by now stays, so the garbage collector need not look at it again and again: a tenth of a round."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch that never jump: a corrected system clock must not end every lease at once."""
    epoch = time.time() - time.monotonic()
    return lambda: epoch + time.monotonic()


@asynccontextmanager
async def coordinator(
    settings: CoordinatorSettings, port: int, token: str, tracer: "Tracer | None" = None, front: "Front | None" = None
) -> "AsyncIterator[tuple[Coordinator, FastAPI]]":
    """A started coordinator on its stores, and the API in front of it; `front`, if Redis is used, is what answers."""
    from tutti.adapters.accounts.argon2 import Argon2Passwords
    from tutti.adapters.apart import Processes
    from tutti.adapters.datasets import known_schema
    from tutti.adapters.fabrics.hub import HubFabric, HubLimits
    from tutti.adapters.fabrics.joined import JoinedFabrics
    from tutti.adapters.identities.secp256k1 import verify
    from tutti.adapters.identities.x25519 import seal
    from tutti.adapters.tracing import TracedFabric
    from tutti.adapters.workbench import Bench, OwnProcess
    from tutti.apps.api.app import create_app
    from tutti.apps.api.settings import ApiSettings
    from tutti.apps.chain import chain_domain, open_chain
    from tutti.apps.replicas import Replica
    from tutti.services.accounts import Accounts
    from tutti.services.coordinator import Coordinator
    from tutti.services.keeping import Keep
    from tutti.services.market.desk import MarketDesk
    from tutti.services.market.floor import MarketFloor
    from tutti.services.members import fingerprint
    from tutti.services.rewards import RewardDesk
    from tutti.services.sessions import Sessions

    folder = data_folder(settings.data_dir)
    fabric = HubFabric(
        lambda node, secret: (replica or core.members).authenticate(node, secret),
        turned_away=lambda *refused: (replica or core.members).turn_away(*refused),
        limits=HubLimits(heartbeat=settings.heartbeat, nodes=settings.max_nodes),
    )
    replica = Replica(settings.redis, fabric, lambda: core) if settings.redis else None
    log = await _open_log(
        settings, folder, replica.name if replica else "", settings.replica_url or settings.own_url(port)
    )
    blobs = await _open_blobs(settings, folder)
    depot = _depot(blobs, lambda: core) if settings.broker else None
    broker = _broker(settings, depot, settings.url(port), lambda: core)
    relayed = replica.relayed if replica else None
    others: list[Fabric] = [other for other in (broker, relayed) if other is not None]
    reached: Fabric = JoinedFabrics(fabric, *others) if others else fabric
    traced = TracedFabric(reached, tracer) if tracer is not None else None
    core = Coordinator(
        event_log=log,
        blobs=blobs,
        fabric=traced or reached,
        workbench=Bench(OwnProcess(), settings.allow_modules),
        known_schema=known_schema,
        clock=steady_clock(),
        audited=share_of_audits(settings.audited, able=find_spec("wasmtime") is not None),
        pays=settings.pays,
        domain=chain_domain(folder),
        verify=verify,
        summing=relayed,
    )
    clock = core.clock
    chain = open_chain(folder, core)
    signed = None if chain else _signed_ledger(settings, folder, clock)
    if signed is not None:
        await signed.check_key()
    ledger: Ledger = signed or chain.ledger  # type: ignore[union-attr]  # there is one of the two
    desk = RewardDesk(core.journal, blobs, core.workbench, ledger, clock, _audit_key(settings, folder))
    market = MarketDesk(core.journal, blobs, ledger, clock)
    floor = MarketFloor(
        market,
        reached,
        Processes(),
        drained=lambda node: node in core.register.drained or bool(core.register.maintenance),
    )
    sessions = Sessions(core, seal)
    core.lend(floor, sessions)
    core.keeper.keep = Keep(models=settings.keep_models, days=settings.keep_days)
    core.keeper.archivable = lambda job: job.spec.rewards is None and chain is None  # else others read its events
    core.keeper.retained = lambda: desk.retained() | market.retained() | sessions.retained()
    accounts = Accounts(await _open_accounts(settings, folder), Argon2Passwords(), core.clock)
    core.admit_by(lambda by, one_more: accounts.check_quota(by, one_more, core.used))
    api = ApiSettings(
        host=settings.host,
        port=port,
        token=fingerprint(token),
        authenticate=True if settings.auth or settings.public_url else None,
        url=settings.url(port),
        key=_session_key(settings, folder),
    )
    beside = (desk, ledger), (market, floor), sessions
    app = create_app(core, fabric, blobs, accounts, api, *beside, chain=chain, broker=broker, relayed=relayed)
    if traced is not None:
        core.journal.watchers.append(traced.told)
    await _own(log, core, settings, partial(replica.until_owner, front=front, blobs=blobs) if replica else None)
    fabric.traffic = core.stats
    await accounts.load()
    if signed is not None:
        await signed.open()
    async with broker or contextlib.nullcontext():
        await core.start()
        if replica is not None:
            core.background.spawn(replica.begin())
        core.background.spawn(desk.run())
        core.background.spawn(floor.run())
        sessions.resume()
        if broker is not None:
            core.background.spawn(broker.run())
        if depot is not None:
            core.background.spawn(depot.keep_tidy())
        if chain is not None:
            core.background.spawn(chain.desk.run())
        try:
            yield core, app
        finally:
            await core.stop()
            if traced is not None:
                traced.close()
            await ledger.close()
            await accounts.close()
            if replica is not None:
                await replica.post.close()


def share_of_audits(asked: float | None, *, able: bool) -> float:
    """The share of browsers' updates that are computed again; raises UserError for one that cannot be: `able` is
    whether wasmtime is here."""
    if able:
        return AUDITED if asked is None else asked
    if asked:
        raise UserError(
            f"expected wasmtime for --audited {asked:g}, it is not installed: pip install '.[audit]' in "
            "Tutti's sources, or start with --audited 0, which computes no browser's update again"
        )
    if asked is None:
        log.warning(
            "no browser's update is computed again: wasmtime is missing (pip install '.[audit]' in Tutti's sources)"
        )
    return 0.0


def _depot(blobs: "DirectoryBlobs", core: "Callable[[], Coordinator]") -> "BucketDepot | None":
    """Nodes of the broker go to the bucket for blobs, if there is one, else to the coordinator."""
    from tutti.adapters.blobs.mirrored import MirroredBlobs
    from tutti.adapters.fabrics.bucket import BucketDepot

    if not isinstance(blobs, MirroredBlobs):
        return None
    return BucketDepot(
        blobs,
        may_read=lambda node, digest: core().access.may_read(node, digest),
        update_limit=lambda node: core().access.update_limit(node),
    )


def _broker(
    settings: CoordinatorSettings, depot: "BucketDepot | None", url: str, core: "Callable[[], Coordinator]"
) -> "BrokerFabric | None":
    if not settings.broker:
        return None
    from tutti.adapters.fabrics.amqp import Address
    from tutti.adapters.fabrics.broker import BrokerFabric

    return BrokerFabric(
        Address.parse(settings.broker),
        lambda node, secret: core().members.authenticate(node, secret),
        admit=lambda token, node, secret: core().members.admit(token, node, secret),
        turned_away=lambda *a: core().members.turn_away(*a),
        depot=depot,
        blobs_url="" if depot else url,
        ca=settings.broker_ca,
    )


def _audit_key(settings: CoordinatorSettings, folder: Path) -> bytes:
    """What the secrets of audits follow from: of the ledger's key where replicas have that in common."""
    from tutti.adapters.identities.ed25519 import secret_at

    shared = settings.ledger_key_file
    return secret_at(shared if shared is not None else folder / "audit.key")


def _signed_ledger(settings: CoordinatorSettings, folder: Path, clock: Callable[[], float]) -> "SignedLedger":
    """Where events are; it is opened once they are ours."""
    from tutti.adapters.identities.ed25519 import Ed25519Key
    from tutti.adapters.ledgers.signed import SignedLedger

    key = Ed25519Key.at(settings.ledger_key_file or folder / "ledger.key")
    if settings.database and settings.pays:
        from tutti.adapters.ledgers.postgres import PostgresEntries

        ledger = SignedLedger(PostgresEntries(settings.database), key, lambda: int(1000 * clock()))
    else:
        from tutti.adapters.ledgers.sqlite import SqliteEntries

        ledger = SignedLedger(SqliteEntries(folder / "ledger.sqlite"), key, lambda: int(1000 * clock()))
    ledger.closed = "" if settings.pays else NO_LEDGER
    return ledger


async def _open_log(settings: CoordinatorSettings, folder: Path, name: str, at: str) -> "EventLog":
    """The event log; with `standby` it may be another coordinator's yet. `name` and `at` are for other replicas."""
    if settings.database:
        from tutti.adapters.logs.postgres import PostgresLog

        _warn_of_files(folder)
        if settings.standby:
            return await PostgresLog.beside(settings.database, name, at)
        return await PostgresLog.open(settings.database)
    from tutti.adapters.logs.sqlite import SqliteLog

    return await SqliteLog.open(folder / "log.sqlite")


def _warn_of_files(folder: Path) -> None:
    """What was recorded here before there was a database does not go there by itself."""
    from tutti.adapters.ledgers.sqlite import holds_tokens

    left = [name for name in ("log.sqlite", "accounts.sqlite") if (folder / name).exists()]
    left += ["ledger.sqlite"] if holds_tokens(folder / "ledger.sqlite") else []
    if left:
        said = "what is in them is in use again without --database"
        log.warning("%s has %s, which nobody reads with --database: %s", folder, ", ".join(left), said)


async def _own(
    log: "EventLog",
    core: "Coordinator",
    settings: CoordinatorSettings,
    relaying: "Callable[[PostgresLog, Callable[[], None]], Awaitable[None]] | None",
) -> None:
    """See to it that the log is ours and stays so. Who stands by has replayed it when its turn comes."""
    if settings.database:
        from tutti.adapters.logs.postgres import PostgresLog

        assert isinstance(log, PostgresLog)
        if relaying is not None:
            await relaying(log, settings.on_standby)
        elif settings.standby:
            await log.stand_by(settings.on_standby, lambda owner: core.journal.load())
        core.background.spawn(log.keep(replaceable=settings.standby))


async def _open_accounts(settings: CoordinatorSettings, folder: Path) -> "AccountStore":
    if settings.database:
        from tutti.adapters.accounts.postgres import PostgresAccounts

        return await PostgresAccounts.open(settings.database)
    from tutti.adapters.accounts.sqlite import SqliteAccounts

    return await SqliteAccounts.open(folder / "accounts.sqlite")


async def _open_blobs(settings: CoordinatorSettings, folder: Path) -> "DirectoryBlobs":
    from tutti.adapters.blobs.directory import DirectoryBlobs

    if settings.blobs:
        from tutti.adapters.blobs.mirrored import MirroredBlobs
        from tutti.adapters.blobs.s3 import S3Blobs

        return MirroredBlobs(folder / "blobs", await S3Blobs.open(settings.blobs))
    return DirectoryBlobs(folder / "blobs")


async def _announce(core: "Coordinator", settings: CoordinatorSettings, port: int, token_file: Path | None) -> None:
    if settings.on_ready is None:
        return
    url = settings.url(port)
    if settings.standby:  # which starts and takes over again and again: its log shall not fill with invitations
        settings.on_ready(Ready(url, "", token_file))
        return
    token = await core.members.invite(seconds=INVITE_SECONDS, by="tutti up")
    broker_link = f"{split_link(settings.broker)[0]}#{token}" if settings.broker else ""
    settings.on_ready(Ready(url, f"{url}/join#{token}", token_file, broker_link))


# -- files and sockets ---------------------------------------------------------------------------------


def _listen(host: str, port: int, *, listen: bool) -> socket.socket:
    """The listening socket, made before anything else is touched, so that a second coordinator stops here.

    Of one that may have to wait it does not listen yet, so that a load balancer asks another one.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        if listen:
            listener.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} on {host} is in use: choose another with --port") from None
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listener


def _reachable(host: str) -> str:
    """An address that other machines can use: for 'every interface', the one that leads outside."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address; nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def data_folder(folder: Path) -> Path:
    """The data directory, made if it is not there, and its owner's only; raises StorageError."""
    with _usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    return folder


def check_data_folder(folder: Path) -> None:
    """Raise what `data_folder` would; nothing stays of the attempt."""
    with _usable(folder):
        if folder.is_dir():
            folder.chmod(stat.S_IMODE(folder.stat().st_mode))  # only its owner may
        elif folder.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        else:
            Path(tempfile.mkdtemp(dir=next(each for each in folder.absolute().parents if each.exists()))).rmdir()


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use the data directory {folder}: {error.strerror}") from None


def operator_token(settings: CoordinatorSettings) -> tuple[Path, str]:
    """The operator's token: as set, or made at the first start and kept in the data directory."""
    if (given := settings.operator_token_file) is not None:
        from tutti.apps.secrets import read_secret

        return given, read_secret(given)
    file = data_folder(settings.data_dir) / "operator-token"
    if not file.exists():
        write_secret(file, secrets.token_urlsafe(32))
    return file, file.read_text().strip()


def _session_key(settings: CoordinatorSettings, folder: Path) -> bytes:
    """What signs the access tokens of sessions: as set, or made at the first start."""
    if settings.jwt_secret_file is not None:
        from tutti.apps.secrets import read_jwt_secret

        return read_jwt_secret(settings.jwt_secret_file)
    file = folder / "session-key"
    if not file.exists():
        write_secret(file, secrets.token_hex(32))
    return bytes.fromhex(file.read_text().strip())
