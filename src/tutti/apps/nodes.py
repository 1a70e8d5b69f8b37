"""A node's process put together, as `bootstrap` puts a coordinator together: what `tutti join` does."""

import asyncio
import contextlib
import fcntl
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import msgspec

from tutti.apps.secrets import write_secret
from tutti.core.errors import Conflict, StorageError, UserError
from tutti.core.registry import Choice
from tutti.domain.policy import Policy, load_policy
from tutti.domain.signing import address_of
from tutti.domain.spec import DataSchema
from tutti.ports import Data, LinkLost, Trainer

if TYPE_CHECKING:
    from tutti.ports import Link
    from tutti.wire.messages import Offer

PEER = "sessions"
"""What `tutti join --data` says for a peer, which has no data of its own and takes parts of uploaded tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What `tutti join` needs to know. `link` is a join link, or the coordinator's address if it joined before.

    `allow_modules` adds to those of the policy. With an `offer` the node is a worker on the compute market too, and
    need not have `data`.
    """

    link: str
    data: Choice | None
    name: str
    state_dir: Path
    policy: Path | None = None
    allow_modules: tuple[str, ...] = ()
    ca: Path | None = None
    compress: bool = False
    offer: "Offer | None" = None
    on_connected: Callable[[str, str], None] = lambda url, signs_as: None
    """Called whenever the coordinator has taken the node in: with its URL, and the address that the node signs as."""


class Membership(msgspec.Struct, frozen=True):
    """What a node keeps of its membership, in `membership.json` of its state directory, for its eyes only."""

    url: str
    node: str
    secret: str
    joined: bool = False


async def run_node(settings: NodeSettings) -> None:
    """Join (once) and serve until cancelled; raises UserError or LinkRefused with the reason if that cannot be."""
    policy = read_policy(settings.policy)
    policy = msgspec.structs.replace(policy, allow_modules=(*policy.allow_modules, *settings.allow_modules))
    with sole_use(settings.state_dir):
        await _run_node(settings, policy)


async def _run_node(settings: NodeSettings, policy: Policy) -> None:
    from tutti.adapters.gpu import gpu_answer
    from tutti.adapters.identities.secp256k1 import Secp256k1Key
    from tutti.adapters.machine import Machine, apply_limits
    from tutti.adapters.tracing import TracedLink, tracing
    from tutti.services.market.worker import Worker
    from tutti.services.node import NodeRuntime

    apply_limits(policy)
    peer = settings.data is not None and settings.data.name == PEER
    data = await asyncio.to_thread(load_data, settings.data) if settings.data and not peer else no_data()
    member = await membership(settings)
    machine, key = Machine(), await asyncio.to_thread(Secp256k1Key.at, settings.state_dir / "signing-key")
    async with contextlib.AsyncExitStack() as stack:
        tracer = stack.enter_context(tracing("tutti-node"))
        plain = await stack.enter_async_context(_link(settings, member))
        link = TracedLink(plain, tracer, member.node) if tracer else plain
        market = settings.state_dir / "market"
        offer = _able(settings.offer) if settings.offer else None
        gpu = await asyncio.to_thread(gpu_answer) if offer and policy.allow_gpu else None
        worker = Worker(member.node, member.secret, offer, link, market, gpu=gpu) if offer else None

        def runtime(link: "Link", data: Data) -> NodeRuntime:
            return NodeRuntime(
                name=member.node,
                token=member.secret,
                link=link,
                data=data,
                policy=policy,
                machine=machine,
                workdir=settings.state_dir / "work",
                trainer_for=trainers(policy),
                on_connected=lambda: settings.on_connected(member.url, address_of(key.public)),
                worker=worker,
                key=key,
            )

        if not peer:
            return await runtime(link, data).run()
        from tutti.adapters.identities.x25519 import SealingKey
        from tutti.services import peer as peers

        await peers.serve(link, SealingKey.at(settings.state_dir / "sealing-key"), runtime)


def _link(settings: NodeSettings, member: Membership) -> "AbstractAsyncContextManager[Link]":
    if is_broker(settings.link):
        from tutti.adapters.fabrics.amqp import Address
        from tutti.adapters.fabrics.broker_link import BrokerLink

        return BrokerLink(Address.parse(settings.link), member.node, member.secret, ca=settings.ca)
    from tutti.adapters.fabrics.hub_link import HubLink

    return HubLink(member.url, member.node, member.secret, ca=settings.ca, compress=settings.compress)


def _able(offer: "Offer") -> "Offer":
    """The offer without kinds of jobs that cannot be done here."""
    from tutti.core.workload import workloads
    from tutti.core.workloads.script import runs_here

    if offer.kinds or runs_here():
        return offer
    return msgspec.structs.replace(offer, kinds=tuple(name for name in workloads if name != "script"))


def trainers(policy: Policy) -> Callable[[Choice, DataSchema], Trainer]:
    """How a node builds trainers: of modules that a job names, only those that its owner's policy lists."""
    from tutti.adapters._imports import importable
    from tutti.adapters.machine import share_gpus
    from tutti.ports.training import models

    def trainer_for(model: Choice, schema: DataSchema) -> Trainer:
        with importable(policy.allow_modules):
            trainer = models.build(model, data=schema)
        share_gpus(policy)  # PyTorch is there now, if the model needs it, and nothing is on a GPU yet
        return trainer

    return trainer_for


def no_data() -> Data:
    """What a node holds that only computes: no rows, so that no training asks for it."""
    import numpy as np

    from tutti.ports import Examples

    nothing = Examples(np.empty((0, 1), np.float32), np.empty((0, 1), np.float32))
    return Data("none", DataSchema("regression", (1,), 1), nothing, nothing)


def load_data(choice: Choice) -> Data:
    """Read a node's data; raises UserError that names file, row and column of what is wrong."""
    from tutti.adapters.datasets import known_schema
    from tutti.ports.training import datasets

    data = datasets.build(choice).load()
    public = known_schema(choice) is not None and "path" not in choice.options
    return replace(data, source=str(choice)) if public else data


def read_policy(file: Path | None) -> Policy:
    """The owner's policy; without a file everything is allowed."""
    if file is None:
        return Policy()
    try:
        return load_policy(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the policy file {file}: {error}") from None


async def membership(settings: NodeSettings) -> Membership:
    """The membership kept from before, or a new one bought with the link's token.

    The secret is chosen and stored here before it is told to the coordinator: a node killed at any moment
    of this can ask again with the same link.
    """
    from tutti.apps.client import Unreachable

    url, token = split_link(settings.link)
    file = settings.state_dir / "membership.json"
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=Membership) if file.exists() else None
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"cannot use the state directory {settings.state_dir}: {error}") from None
    if kept is None or (kept.url, kept.node) != (url, settings.name):
        if token is None:
            raise UserError(f"{settings.name!r} has not joined {url} yet: use a join link (`tutti invite` prints one)")
        kept = Membership(url, settings.name, secrets.token_urlsafe(32))
        write_secret(file, msgspec.json.encode(kept).decode())
    if token is not None:
        try:
            await _join(settings, kept, token)
        except (Unreachable, LinkLost):
            if not kept.joined:  # a member waits for its coordinator, as it does when it is running
                raise
        else:
            write_secret(file, msgspec.json.encode(msgspec.structs.replace(kept, joined=True)).decode())
    return kept


@contextmanager
def sole_use(state_dir: Path) -> Iterator[None]:
    """Keep other nodes from a state directory; the kernel drops the lock when this process dies, however it does.

    Raises Conflict if another process holds it, StorageError if the directory cannot be used.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = (state_dir / "lock").open("ab")
    except OSError as error:
        raise StorageError(f"cannot use the state directory {state_dir}: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another node runs with the state directory {state_dir}: end it, "
                "or choose another --name or --state-dir"
            ) from None
        yield


def is_broker(link: str) -> bool:
    return urlsplit(link).scheme in ("amqp", "amqps")


def split_link(link: str) -> tuple[str, str | None]:
    """A join link's address and token; the token is None for a plain address. Raises UserError for anything else.

    Of a broker's address, name and password are left out: they are not what tells one coordinator from another.
    """
    parts = urlsplit(link)
    if is_broker(link):
        from tutti.adapters.fabrics.amqp import Address

        Address.parse(link)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, parts.query, "")), parts.fragment or None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"expected a join link such as http://host:8000/join#token, came {link!r}")
    return f"{parts.scheme}://{parts.netloc}", parts.fragment or None


async def _join(settings: NodeSettings, member: Membership, token: str) -> None:
    if is_broker(settings.link):
        from tutti.adapters.fabrics import broker_link
        from tutti.adapters.fabrics.amqp import Address

        return await broker_link.join(Address.parse(settings.link), token, member.node, member.secret, settings.ca)
    await asyncio.to_thread(_join_by_http, member, token, settings.ca)


def _join_by_http(member: Membership, token: str, ca: Path | None) -> None:
    from tutti.apps.client import Client

    with Client(member.url, ca=ca) as client:
        client.join(token, member.node, member.secret)
