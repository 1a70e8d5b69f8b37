"""A coordinator from Python: the REST API as methods that take and return the same types as the server's.

with tutti.Client("http://127.0.0.1:8000") as client:
    job = client.submit({"dataset": "digits", "model": "mlp", "rounds": 20})
    for event in client.follow(job.id):
        print(event.type, event.data)
    client.download(job.id, "model.safetensors")
"""

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec

from tutti.apps.market_client import MarketClient
from tutti.core.errors import Conflict, Forbidden, NotFound, StorageError, TuttiError, Unavailable, UserError
from tutti.domain.accounts import Role
from tutti.domain.forecast import Forecast, Usage
from tutti.domain.spec import JobSpec, load_spec
from tutti.services.manifest import Manifest
from tutti.services.views import (
    CheckView,
    Configuration,
    ContributionView,
    EvaluationView,
    EventView,
    Health,
    Invitation,
    JobView,
    MetricPoint,
    MetricsView,
    ModelView,
    NodeView,
    Page,
    PreflightView,
    RoundView,
    StatusView,
    WhyView,
)
from tutti.services.views.accounts import (
    AccountView,
    AuditView,
    Grant,
    IssuedToken,
    OrganisationView,
    SessionView,
    TokenView,
)
from tutti.services.views.chain import (
    BlockView,
    ChainSessionView,
    ChainView,
    ClaimView,
    ProvenView,
    RecordedView,
    TransactionView,
)
from tutti.services.views.ledger import BalanceView, Entry, LedgerView, Proof, RewardsView, ScoredView

T = TypeVar("T")

OVER = frozenset({"completed", "stopped", "failed"})
LAST_EVENTS = frozenset({"JobCompleted", "JobStopped", "JobFailed"})
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
STEADY_SECONDS = 5.0
"""A live connection that lasted so long was a good one, even if nothing happened meanwhile."""
ROOT = "/api/v1"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Unreachable(TuttiError):
    """No coordinator answers at this address."""


class Client:
    """Speaks with one coordinator; not for use by several threads at once.

    Args:
        url: Such as `http://127.0.0.1:8000`.
        token: The operator's, or one made for a program; not needed for a coordinator on this machine without accounts.
        ca: A file with the certificate authority that signed the coordinator's certificate.
        timeout: Seconds to wait for an answer.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        ca: Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._tls = trust(ca) if self.url.startswith("https:") else None
        self._timeout = timeout
        self._local = urlsplit(self.url).hostname in LOOPBACK
        self._http = httpx.Client(
            base_url=self.url,
            headers=self._headers,
            verify=self._tls or False,
            timeout=timeout,
            trust_env=not self._local,  # no proxy stands between a machine and itself
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- jobs ----------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec | Mapping[str, Any], *, key: str = "", paused: bool = False) -> JobView:
        """Ask for training. With a `key`, asking again gives the same job; raises a UserError for a bad spec."""
        checked = spec if isinstance(spec, JobSpec) else load_spec(spec)
        headers = {"idempotency-key": key} if key else {}
        return self._call("POST", "/jobs", JobView, body=checked, headers=headers, query={"paused": paused})

    def check(self, spec: JobSpec | Mapping[str, Any]) -> CheckView:
        """Whether a job could be run as written, without asking for it; raises a UserError for what is wrong."""
        checked = spec if isinstance(spec, JobSpec) else load_spec(spec)
        return self._call("POST", "/jobs/check", CheckView, body=checked)

    def forecast(self, spec: JobSpec | Mapping[str, Any]) -> Forecast:
        """What a job would take if it were submitted now; raises a UserError for a bad spec."""
        checked = spec if isinstance(spec, JobSpec) else load_spec(spec)
        return self._call("POST", "/jobs/forecast", Forecast, body=checked)

    def usage(self, job: str) -> Usage:
        """What a job took so far, in the terms of its forecast."""
        return self._call("GET", f"/jobs/{quote(job)}/usage", Usage)

    def jobs(self, **filters: str) -> Iterator[JobView]:
        """Newest first; filter by status, name or dataset."""
        return self._pages("/jobs", JobView, **filters)

    def job(self, job: str) -> JobView:
        return self._call("GET", f"/jobs/{quote(job)}", JobView)

    def manifest(self, job: str) -> Manifest:
        """What it takes to make a job's model again (`tutti replay`)."""
        return self._call("GET", f"/jobs/{quote(job)}/manifest", Manifest)

    def pause(self, job: str) -> JobView:
        return self._call("POST", f"/jobs/{quote(job)}/pause", JobView)

    def resume(self, job: str) -> JobView:
        return self._call("POST", f"/jobs/{quote(job)}/resume", JobView)

    def stop(self, job: str, reason: str = "asked") -> JobView:
        return self._call("POST", f"/jobs/{quote(job)}/stop", JobView, body={"reason": reason})

    def wait(self, job: str) -> JobView:
        """Until the job is over, however long; the result may be a failed job."""
        offset, now = self.status().offset, self.job(job)
        if now.status not in OVER:
            for _ in self.follow(job, after=offset):
                pass
        return self.job(job)

    def rounds(self, job: str) -> Iterator[RoundView]:
        """Every attempt at every round, the open one last."""
        return self._pages(f"/jobs/{quote(job)}/rounds", RoundView)

    def why(self, job: str, round: int) -> WhyView:
        """Who took part in a round, who did not and why, and what each contributed."""
        return self._call("GET", f"/jobs/{quote(job)}/rounds/{round}", WhyView)

    def evaluation(self, job: str, round: int | None = None) -> EvaluationView:
        """What every node measured of the model of a round, by default the newest measured, and how evenly."""
        return self._call(
            "GET", f"/jobs/{quote(job)}/evaluation", EvaluationView, query={} if round is None else {"round": round}
        )

    def metrics(self, job: str) -> Iterator[MetricPoint]:
        return self._pages(f"/jobs/{quote(job)}/metrics", MetricPoint)

    def contributions(self, **filters: str) -> Iterator[ContributionView]:
        """Who gave how much; filter by job or node."""
        return self._pages("/contributions", ContributionView, **filters)

    # -- tokens --------------------------------------------------------------------------------------------

    def ledger(self) -> LedgerView:
        return self._call("GET", "/ledger", LedgerView)

    def entries(self) -> Iterator[Entry]:
        """Every entry of the ledger, from its founding on."""
        return self._pages("/ledger/entries", Entry, first="-1")

    def holders(self) -> Iterator[BalanceView]:
        """Who holds tokens, by name."""
        return self._pages("/ledger/accounts", BalanceView)

    def account(self, name: str) -> BalanceView:
        return self._call("GET", f"/ledger/accounts/{quote(name)}", BalanceView)

    def mint(self, to: str, amount: int, *, key: str) -> BalanceView:
        """New tokens; the same key again mints nothing more."""
        return self._call("POST", "/ledger/mint", BalanceView, body={"to": to, "amount": amount, "key": key})

    def transfer(self, source: str, to: str, amount: int, *, key: str) -> BalanceView:
        """Tokens of one account for another; the same key again moves nothing more. What `source` has then."""
        body = {"to": to, "amount": amount, "key": key}
        return self._call("POST", f"/ledger/accounts/{quote(source)}/transfer", BalanceView, body=body)

    def claim(self, name: str, *, key: str) -> BalanceView:
        """Take everything that is owed to an account."""
        path = f"/ledger/accounts/{quote(name)}/claim"
        return self._call("POST", path, BalanceView, headers={"idempotency-key": key})

    @property
    def market(self) -> MarketClient:
        """The compute market."""
        return MarketClient(self._call, self._pages)

    def all_rewards(self) -> Iterator[RewardsView]:
        """The jobs that pay for contributions, newest first."""
        return self._pages("/rewards", RewardsView)

    def rewards(self, job: str) -> RewardsView:
        return self._call("GET", f"/jobs/{quote(job)}/rewards", RewardsView)

    def scored(self, job: str, round: int) -> ScoredView:
        """What each node earned in a round, and why."""
        return self._call("GET", f"/jobs/{quote(job)}/rewards/{round}", ScoredView)

    def proof(self, job: str, round: int, node: str) -> Proof:
        """That a node's update is among those of a round."""
        return self._call("GET", f"/jobs/{quote(job)}/rewards/{round}/proof/{quote(node)}", Proof)

    # -- the chain -----------------------------------------------------------------------------------------

    def chain(self) -> ChainView:
        return self._call("GET", "/blockchain/status", ChainView)

    def chain_sessions(self) -> Iterator[ChainSessionView]:
        """The jobs that the chain knows, newest first."""
        return self._pages("/blockchain/sessions", ChainSessionView)

    def chain_session(self, job: str) -> ChainSessionView:
        """A job as it stands on the chain."""
        return self._call("GET", f"/blockchain/sessions/{quote(job)}", ChainSessionView)

    def chain_round(self, job: str, round: int) -> RecordedView:
        """A round as it stands on the chain."""
        return self._call("GET", f"/blockchain/sessions/{quote(job)}/rounds/{round}", RecordedView)

    def chain_proof(self, job: str, round: int, node: str) -> ProvenView:
        """Whether the contract finds a node's update among those of a round."""
        path = f"/blockchain/sessions/{quote(job)}/rounds/{round}/proof/{quote(node)}"
        return self._call("GET", path, ProvenView)

    def claimable(self, account: str) -> ClaimView:
        """What an account can claim on the chain, and by which proof."""
        return self._call("GET", f"/blockchain/claims/{quote(account)}", ClaimView)

    def transactions(self) -> Iterator[TransactionView]:
        """Every transaction of the coordinator's that is on its chain, in order."""
        return self._pages("/blockchain/transactions", TransactionView, first="0")

    def blocks(self) -> Iterator[BlockView]:
        """Every block of an embedded chain."""
        return self._pages("/blockchain/blocks", BlockView, first="0")

    # -- models --------------------------------------------------------------------------------------------

    def models(self, job: str | None = None) -> Iterator[ModelView]:
        """The models of a job with their lineage, or the current one of every job."""
        return self._pages(f"/jobs/{quote(job)}/models" if job else "/models", ModelView)

    def download(self, job: str, path: str | Path, round: int | None = None) -> Path:
        """Write the job's current model, or that of a round, to a safetensors file: whole, or not at all."""
        return self._save(f"/jobs/{quote(job)}/model", Path(path), {} if round is None else {"round": str(round)})

    def _save(self, path: str, target: Path, query: Mapping[str, str]) -> Path:
        partial = target.with_name(f".{target.name}.part")
        try:
            with (
                self._errors(),
                self._http.stream("GET", f"{ROOT}{path}", params=query) as response,
                partial.open("wb") as file,
            ):
                if response.is_error:
                    response.read()
                    raise _error_of(response.status_code, response.content)
                for chunk in response.iter_bytes():
                    file.write(chunk)
            return partial.replace(target)
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)

    # -- nodes ---------------------------------------------------------------------------------------------

    def nodes(self, **filters: str) -> Iterator[NodeView]:
        """By name; filter by `connected` ("true", "false") or dataset."""
        return self._pages("/nodes", NodeView, **filters)

    def node(self, name: str) -> NodeView:
        return self._call("GET", f"/nodes/{quote(name)}", NodeView)

    def remove_node(self, name: str) -> None:
        self._request("DELETE", f"/nodes/{quote(name)}")

    def preflight(self, dataset: str) -> PreflightView:
        """Statistics of the connected nodes' data; no figure is of fewer rows than the node's owner allows."""
        return self._call("POST", f"/datasets/{quote(dataset)}/preflight", PreflightView)

    def begin_maintenance(self, reason: str = "asked") -> StatusView:
        """Let nothing new begin: jobs pause after their open round, new ones are refused."""
        return self._call("PUT", "/maintenance", StatusView, body={"reason": reason})

    def end_maintenance(self) -> StatusView:
        """Go on with what was paused for it."""
        return self._call("DELETE", "/maintenance", StatusView)

    def drain_node(self, name: str) -> NodeView:
        """Let a node finish what it does, and give it no more work."""
        return self._call("POST", f"/nodes/{quote(name)}/drain", NodeView)

    def undrain_node(self, name: str) -> NodeView:
        """Give a drained node work again."""
        return self._call("POST", f"/nodes/{quote(name)}/undrain", NodeView)

    def invite(self, uses: int = 1, seconds: float = 86_400.0) -> Invitation:
        """A join link for so many nodes and so many seconds."""
        return self._call("POST", "/invites", Invitation, body={"uses": uses, "seconds": seconds})

    def check_invite(self, token: str) -> None:
        """Raises Forbidden if a join token would not be taken; does not use it up."""
        self._request("POST", "/invites/check", body={"token": token})

    def join(self, token: str, node: str, secret: str) -> None:
        """Join under a name, with the secret that the node will show from now on; asking again is harmless."""
        self._request("POST", "/nodes", body={"token": token, "node": node, "secret": secret})

    # -- accounts ------------------------------------------------------------------------------------------

    def session(self) -> SessionView:
        """Who this client is to the coordinator, and whether one must sign in."""
        return self._call("GET", "/auth/session", SessionView, root="")

    def sign_up(self, name: str, password: str, *, role: Role | None = None, organisation: str = "") -> AccountView:
        """Make an account; only an admin may give a role or name an organisation."""
        wish = {"name": name, "password": password, "role": role, "organisation": organisation or None}
        return self._call("POST", "/auth/signup", AccountView, body=wish, root="")

    def sign_in(self, name: str, password: str) -> Grant:
        """Begin a session, in which this client speaks from now on."""
        grant = self._call("POST", "/auth/signin", Grant, body={"name": name, "password": password}, root="")
        return self._speak_as(grant)

    def refresh(self, grant: Grant) -> Grant:
        """Go on with a session before its access token expires; the old grant is void."""
        body = {"refresh_token": grant.refresh_token}
        return self._speak_as(self._call("POST", "/auth/refresh", Grant, body=body, root=""))

    def sign_out(self, grant: Grant) -> None:
        """End a session."""
        self._request("POST", "/auth/revoke", body={"refresh_token": grant.refresh_token}, root="")

    def change_password(self, current: str, new: str) -> None:
        """Set one's own password; other sessions and all tokens of the account end."""
        self._request("POST", "/auth/password", body={"current": current, "new": new}, root="")

    def organisations(self) -> Iterator[OrganisationView]:
        """Those whose accounts one looks after, with what they may have and what they have."""
        return self._pages("/organisations", OrganisationView)

    def limit_organisation(self, name: str, **quota: float | None) -> OrganisationView:
        """Say how much its people may have, by the fields of a Quota; None: any amount."""
        return self._call("PATCH", f"/organisations/{quote(name)}", OrganisationView, body=quota)

    def accounts(self, **filters: str) -> Iterator[AccountView]:
        """The accounts that the caller looks after; filter by role or organisation."""
        return self._pages("/accounts", AccountView, **filters)

    def change_account(
        self, name: str, *, role: Role | None = None, disabled: bool | None = None, password: str | None = None
    ) -> AccountView:
        """Give a role, lock out or let in, or set a password; what is left out stays."""
        wish = {"role": role, "disabled": disabled, "password": password}
        return self._call("PATCH", f"/accounts/{quote(name)}", AccountView, body=wish)

    def remove_account(self, name: str) -> None:
        self._request("DELETE", f"/accounts/{quote(name)}")

    def tokens(self) -> Iterator[TokenView]:
        """One's own tokens for programs."""
        return self._pages("/tokens", TokenView)

    def issue_token(self, label: str, role: Role = "viewer", *, days: float | None = None) -> IssuedToken:
        """A token for a program; its secret is shown this once."""
        return self._call("POST", "/tokens", IssuedToken, body={"label": label, "role": role, "days": days})

    def revoke_token(self, token: str) -> None:
        self._request("DELETE", f"/tokens/{quote(token)}")

    def audit(self, **filters: str) -> Iterator[AuditView]:
        """Who did what, when and from where, in order (newest="true": the newest first); filter by who."""
        return self._pages("/audit", AuditView, first="0", **filters)

    def export_audit(self, path: str | Path, format: Literal["csv", "jsonl"] = "csv") -> Path:
        """Write the whole audit log to a file: whole, or not at all."""
        return self._save("/audit/export", Path(path), {"format": format})

    def _speak_as(self, grant: Grant) -> Grant:
        self._headers = {"authorization": f"Bearer {grant.access_token}"}
        self._http.headers.update(self._headers)
        return grant

    # -- the coordinator -----------------------------------------------------------------------------------

    def status(self) -> StatusView:
        return self._call("GET", "/status", StatusView)

    def health(self) -> Health:
        return self._call("GET", "/health", Health, root="")

    def ready(self) -> Health:
        """Raises Unavailable while the coordinator cannot take work."""
        return self._call("GET", "/ready", Health, root="")

    def configuration(self) -> Configuration:
        """How the coordinator is set up, and what a job gets that does not say otherwise."""
        return self._call("GET", "/config", Configuration)

    def overview(self) -> MetricsView:
        """Counters since the coordinator started, and where every job stands."""
        return self._call("GET", "/metrics", MetricsView)

    def registries(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All registries, by kind."""
        return self._call("GET", "/registry", dict[str, dict[str, dict[str, Any]]])

    def registry(self, kind: str) -> dict[str, dict[str, Any]]:
        """The names in a registry, such as strategies or models, with the schema of their options."""
        return self._call("GET", f"/registry/{quote(kind)}", dict[str, dict[str, Any]])

    def events(self, after: int = 0, stream: str = "", limit: int = 1000) -> list[EventView]:
        """What has happened since `after`, in order; streams are `nodes` and `job:<id>`."""
        query = {"after": after, "stream": stream, "limit": limit}
        return self._call("GET", "/events", Page[EventView], query=query).items

    def events_of(self, *types: str, stream: str = "") -> Iterator[EventView]:
        """Every event so far of these types, such as `UpdateRefused`, in order."""
        return self._pages("/events", EventView, first="0", stream=stream, type=types)

    def follow(self, job: str | None = None, after: int = 0, patience: float = 60.0) -> Iterator[EventView]:
        """Events from `after` on, as they happen: of a job until it is over, or of everything for ever.

        Survives a restart of the coordinator; raises Unreachable after `patience` seconds without it.
        """
        if job is not None and self.job(job).status in OVER:
            yield from self._stored(f"job:{job}", after)
            return
        lost_at: float | None = None
        tries = 0
        while True:
            began = time.monotonic()
            try:
                for event in self._listen(f"job:{job}" if job else "", after):
                    after, lost_at, tries = event.offset, None, 0
                    yield event
                    if job is not None and event.type in LAST_EVENTS:
                        return
                lost = Unreachable(f"the coordinator at {self.url} ends every live connection at once")
                if time.monotonic() - began > STEADY_SECONDS:
                    lost_at, tries = None, 0
            except Unreachable as error:
                lost = error
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > patience:
                raise lost
            time.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1

    def _stored(self, stream: str, after: int) -> Iterator[EventView]:
        while events := self.events(after, stream):
            yield from events
            after = events[-1].offset

    def _listen(self, stream: str, after: int) -> Iterator[EventView]:
        """Events over one WebSocket, until the connection ends."""
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        address = f"ws{self.url.removeprefix('http')}/ws?{urlencode({'after': after, 'stream': stream})}"
        try:
            with connect(
                address,
                ssl=self._tls,
                additional_headers=self._headers,
                compression=None,
                open_timeout=self._timeout,
                proxy=None if self._local else True,
            ) as socket:
                for frame in socket:
                    yield msgspec.json.decode(frame, type=EventView)
        except InvalidStatus as error:
            raise _error_of(error.response.status_code, error.response.body or b"") from None
        except ConnectionClosed:
            return
        except (OSError, InvalidHandshake) as error:
            raise self._unreachable(error) from None

    # -- HTTP ----------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        type: type[T],
        *,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        query: Mapping[str, object] = MappingProxyType({}),
        root: str = ROOT,
        raw: bytes | None = None,
    ) -> T:
        """`raw` is a body that is not JSON."""
        answer = self._request(method, path, body=body, headers=headers, query=query, root=root, raw=raw)
        try:
            return msgspec.json.decode(answer, type=type)
        except msgspec.DecodeError as error:
            raise Unreachable(f"what answers at {self.url} is no coordinator of this version: {error}") from None

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        query: Mapping[str, object] = MappingProxyType({}),
        root: str = ROOT,
        raw: bytes | None = None,
    ) -> bytes:
        if "//" in path or path.endswith("/"):
            raise UserError("a name is empty: say which one is meant")
        content = raw if body is None else msgspec.json.encode(body)
        its_headers = {**headers, **({"content-type": "application/json"} if body is not None else {})}
        params = {name: _written(value) for name, value in query.items()}
        with self._errors():
            response = self._http.request(method, f"{root}{path}", content=content, headers=its_headers, params=params)
        if response.is_error:
            raise _error_of(response.status_code, response.content)
        return response.content

    def _pages(self, path: str, type: type[T], /, *, first: str = "", **query: object) -> Iterator[T]:
        after: str | None = first
        while after is not None:
            page = self._call("GET", path, Page[type], query={**query, "after": after})  # type: ignore[valid-type]
            yield from page.items
            after = page.next

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> Unreachable:
        what = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in what:
            return Unreachable(f"the certificate of {self.url} is not trusted ({what}): name its authority with --ca")
        return Unreachable(f"no coordinator answers at {self.url} ({what}): is it running (`tutti up`)?")


def _written(value: object) -> str | list[str]:
    """A value of a query; a tuple is said item by item."""
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def trust(ca: Path | None) -> ssl.SSLContext:
    """A TLS context that trusts the authorities in a PEM file, or the system's; raises UserError for another file."""
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"expected certificates in PEM format in {ca}: {error}") from None


def _error_of(status: int, body: bytes | bytearray) -> TuttiError:
    """The error that a problem document stands for."""
    kinds = {401: Forbidden, 403: Forbidden, 404: NotFound, 409: Conflict, 503: Unavailable, 507: StorageError}
    kinds |= {502: Unreachable, 504: Unreachable}  # says whoever is in front of it
    kind = kinds.get(status, UserError if 400 <= status < 500 else TuttiError)
    try:
        detail = msgspec.json.decode(body)["detail"]
    except (msgspec.DecodeError, KeyError, TypeError):
        detail = f"the server answered with status {status}"
    return kind(detail)
