"""`ring`: members of a ring without a centre, and its clients."""

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.logs import log_to_stderr
from tutti.apps.cli.options import ExistingFile, File, Folder, allow_module, as_json, print_json
from tutti.apps.cli.run_job import check_names, check_writable, checked, job_options, put, spec_from
from tutti.apps.cli.serving import until_signalled
from tutti.core.errors import UserError

if TYPE_CHECKING:
    from tutti.apps.ringclient import RingClient
    from tutti.apps.ringentry import Tls
    from tutti.ports.training import Data
    from tutti.services.views import JobView, RoundView
    from tutti.services.views.ring import Light, RingView

PORT = click.IntRange(1, 65535)
GRACE = 0.5
"""Seconds for which a round waits for a member whose process is gone."""


@click.group()
def ring() -> None:
    """Train without a centre: a ring of members, any of which may die.

    \b
    Examples:
      tutti ring supernode
      tutti ring node 5001 127.0.0.1 9091
      tutti ring train 127.0.0.1 9091 --data letter --model mlp --rounds 20
      tutti ring show 127.0.0.1 9091
    """


def secured(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of mutual TLS."""
    for option in (
        click.option("--insecure", is_flag=True, help="Without TLS on a network: anybody in it can take part."),
        click.option("--tls-ca", type=ExistingFile, help="The authority that signs everybody's certificates."),
        click.option("--tls-key", type=ExistingFile, help="Its private key."),
        click.option(
            "--tls-cert", type=ExistingFile, help="Certificate of this process: only those with one may call."
        ),
    ):
        command = option(command)
    return command


@ring.command()
@click.option("--port", type=PORT, default=9091, show_default=True, help="Where to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--members", type=ExistingFile, help="Addresses that may join, `host:port` a line.  [default: any]")
@secured
@as_json
def supernode(port: int, host: str, members: Path | None, as_json: bool, **tls: Any) -> None:
    """Run a well-known address through which members and clients find the ring.

    It holds nothing: it may die, and the ring goes on. Ends at ctrl-C or SIGTERM.

    \b
    Examples:
      tutti ring supernode
      tutti ring supernode --port 9091 --members compute_node.txt
    """
    import asyncio

    from tutti.adapters.thrift.supernode import parse_members
    from tutti.apps.ringentry import SupernodeSettings, serve_supernode

    log_to_stderr()
    allowed = parse_members(_text_of(members)) if members is not None else ()
    settings = SupernodeSettings(
        host=host,
        port=port,
        members=allowed,
        tls=_tls(host, tls),
        on_ready=lambda address: _say(as_json, {"supernode": address}, f"supernode at {address}; ctrl-C ends it"),
    )
    asyncio.run(until_signalled(serve_supernode(settings)))


@ring.command()
@click.argument("port", type=PORT)
@click.argument("supernode_host")
@click.argument("supernode_port", type=PORT)
@click.option("--seed", "seeds", multiple=True, metavar="HOST:PORT", help="A further supernode; may be repeated.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address under which others reach this member."
)
@click.option("--data", "source", help="What it trains on.  [default: what clients place here]")
@click.option("--members", type=ExistingFile, help="Who may be a member, as for the supernode.  [default: any]")
@click.option("--policy", type=ExistingFile, help="The owner's limits (TOML).")
@allow_module
@click.option("--state-dir", type=Folder, help="Where its state is kept.  [default: ~/.local/state/tutti/ring/…]")
@secured
@as_json
def node(port: int, supernode_host: str, supernode_port: int, seeds: tuple[str, ...], **options: Any) -> None:
    """Be a member: keep a place in the ring, train, and lead when it is this member's turn.

    Killed at any time, it goes on where it was when it is started again. Ends at ctrl-C or SIGTERM.

    \b
    Examples:
      tutti ring node 5001 127.0.0.1 9091
      tutti ring node 5002 127.0.0.1 9091 --data csv:path=mine.csv,target=died
      tutti ring node 5001 10.0.0.1 9091 --seed 10.0.0.2:9091 --host 10.0.0.7
    """
    from tutti.apps.ringclient import named

    run_member(port, (named(supernode_host, supernode_port), *map(_address, seeds)), **options)


def run_member(
    port: int,
    supernodes: tuple[str, ...],
    *,
    host: str | None,
    source: str | None,
    policy: Path | None,
    allow_modules: tuple[str, ...],
    state_dir: Path | None,
    as_json: bool,
    members: Path | None = None,
    **tls: Any,
) -> None:
    import asyncio

    from tutti.adapters.thrift.supernode import parse_members
    from tutti.apps.ringclient import address_towards, default_state, named
    from tutti.apps.ringnode import RingNodeSettings, run_ring_node
    from tutti.core.registry import Choice

    log_to_stderr()
    host = host or address_towards(supernodes[0])
    settings = RingNodeSettings(
        port=port,
        supernodes=supernodes,
        state_dir=state_dir or default_state(named(host, port)),
        host=host,
        data=Choice.parse(source) if source is not None else None,
        members=parse_members(_text_of(members)) if members is not None else (),
        policy=policy,
        allow_modules=allow_modules,
        tls=_tls(host, tls),
        on_ready=lambda address: _say(
            as_json,
            {"node": address},
            f"member {address} looks for its place; ctrl-C ends it",
        ),
    )
    asyncio.run(until_signalled(run_ring_node(settings)))


@ring.command()
@click.argument("host")
@click.argument("port", type=PORT)
@click.argument("job_file", required=False, type=ExistingFile)
@click.option("--data", "source", help="What to divide among the members: letter, csv:path=…  [default: they hold it]")
@job_options
@click.option("--set", "more", multiple=True, metavar="FIELD=VALUE", help="Any other field, such as training.momentum.")
@click.option("--replace", is_flag=True, help="Place the data even if a job trains on others, which it then lacks.")
@click.option("--out", type=File, help="Write the final model to this safetensors file.")
@click.option("--detach", is_flag=True, help="Submit the job, print its id, and do not wait.")
@secured
@as_json
def train(
    host: str,
    port: int,
    job_file: Path | None,
    source: str | None,
    more: tuple[str, ...],
    replace: bool,
    out: Path | None,
    detach: bool,
    as_json: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    insecure: bool,
    **options: Any,
) -> None:
    """Train on a ring, and print the error rate on rows that nobody trained on.

    HOST and PORT are those of a supernode or of any member. With --data, this command divides the rows among the
    members by consistent hashing, and keeps the test rows (or a fifth) for validation. The job goes on without this
    command; `tutti ring result` fetches its model later.

    \b
    Examples:
      tutti ring train 127.0.0.1 9091 --data letter --model mlp:hidden=64 --rounds 20
      tutti ring train 127.0.0.1 9091 --data csv:path=heart.csv,target=died --model linear
      tutti ring train 127.0.0.1 9091 --dataset digits --model mlp --detach
    """
    if out is not None:
        check_writable(out)
    raw = spec_from(job_file, options, more)
    tls = _tls(host, {"tls_cert": tls_cert, "tls_key": tls_key, "tls_ca": tls_ca, "insecure": insecure})
    _with_client(host, port, tls, lambda client: _train(client, raw, source, replace, out, detach, as_json))


async def _train(
    client: "RingClient",
    raw: dict[str, Any],
    source: str | None,
    replace: bool,
    out: Path | None,
    detach: bool,
    as_json: bool,
) -> None:
    import asyncio

    data = None
    if source is not None:
        data = await asyncio.to_thread(_rows, source)
        raw.setdefault("dataset", data.name)
        raw.setdefault("evaluation", {}).setdefault("nodes", False)  # this command holds the rows for that
    raw.setdefault("name", raw.get("dataset", "job"))
    _defaults(raw, len(await client.members()))
    spec = checked(raw)
    if data is not None:
        check_names(spec)  # before anything is given up for it
        placed = await client.place(data, replace=replace)
        holders = sum(1 for rows in placed.values() if rows)
        if not as_json:
            click.echo(f"placed {len(data.train)} rows at {holders} of {len(placed)} members")
        await client.until_held(spec.dataset, holders)
    job = await client.submit(spec)
    if detach:
        print_json({"job": job}) if as_json else click.echo(job)
        return
    await _until_done(client, job, data, out, as_json)


def _defaults(raw: dict[str, Any], members: int) -> None:
    """A member's death should cost little: rounds go on with half of them, and wait for nobody who is gone."""
    cohort = raw.get("cohort", {})
    if "min_nodes" not in cohort:
        put(raw, "cohort.min_nodes", members // 2 + 1)
    if "grace" not in cohort:
        put(raw, "cohort.grace", GRACE)
    if "quorum" not in cohort:
        put(raw, "cohort.quorum", min(raw["cohort"]["min_nodes"], members // 2 + 1))


async def _until_done(client: "RingClient", job: str, data: "Data | None", out: Path | None, as_json: bool) -> None:
    import asyncio

    shown: set[tuple[int, int]] = set()
    async for view, rounds in client.follow(job):
        for each in rounds:
            if each.status != "open" and (each.round, each.attempt) not in shown and not as_json:
                shown.add((each.round, each.attempt))
                click.echo(_line(view, each))
    if view.status != "completed":
        raise JobNotDone(f"job {job} {view.status}: {view.reason}")
    model = await client.model(view.model_digest)
    if out is not None:
        await asyncio.to_thread(out.write_bytes, model)
    error = await asyncio.to_thread(_error_rate, view, model, data)
    if as_json:
        print_json({"job": job, "model": view.model_digest, "rounds": view.rounds_done, "error_rate": error})
        return
    click.echo(f"done: {view.reason}; model {view.model_digest}; job {job}")
    if error is not None:
        assert data is not None
        click.echo(f"error rate: {text.share(error)} on {len(data.held_out)} validation rows")


def _line(job: "JobView", each: "RoundView") -> str:
    loss = each.metrics.get("loss")
    said = f"loss {loss:.4f}, " if loss is not None else ""
    which = f"round {each.round} of {job.rounds}" if each.task == "train" else f"after round {each.round - 1}"
    return f"{which}: {said}{each.counted} of {each.cohort} nodes, {each.reason}"


def _rows(source: str) -> "Data":
    """Training rows, and those for validation: the common test rows where the source has some."""
    from tutti.apps.nodes import load_data
    from tutti.core.registry import BadOption, Choice
    from tutti.ports.training import Data

    choice = Choice.parse(source)
    if "split" in choice.options:
        raise UserError("--data is divided as a whole: leave out split")
    try:
        test = load_data(Choice(choice.name, {**choice.options, "split": "test"}))
    except BadOption:
        return load_data(choice)
    whole = load_data(Choice(choice.name, {"held_out": 0, **choice.options}))
    return Data(whole.name, whole.schema, whole.train, test.held_out)


def _error_rate(job: "JobView", model: memoryview, data: "Data | None") -> float | None:
    """The share of validation rows that the model gets wrong; None where there are none, or no classes."""
    from tutti.ports.training import models, normalized
    from tutti.wire import tensors

    if data is None or len(data.held_out) == 0 or job.data.task != "classification":
        return None
    trainer = models.build(job.spec.model, data=job.data)
    metrics = trainer.evaluate(tensors.decode(model), normalized(data.held_out, job.data))
    return 1.0 - metrics["accuracy"]


@ring.command()
@click.argument("job")
@click.argument("host")
@click.argument("port", type=PORT)
@click.option("--out", type=File, help="Write the final model to this safetensors file.")
@secured
@as_json
def result(job: str, host: str, port: int, out: Path | None, as_json: bool, **tls: Any) -> None:
    """Wait for a job that was submitted before, by whomever, and fetch its model.

    \b
    Examples:
      tutti ring result letter-1a2b3c4d 127.0.0.1 9091 --out model.safetensors
    """
    _with_client(host, port, _tls(host, tls), lambda client: _until_done(client, job, None, out, as_json))


@ring.command()
@click.argument("host")
@click.argument("port", type=PORT)
@secured
@as_json
def show(host: str, port: int, as_json: bool, **tls: Any) -> None:
    """Show the ring: members in order, finger tables, key ranges, copies, the chain, and whether all is well.

    \b
    Examples:
      tutti ring show 127.0.0.1 9091
    """
    _with_client(host, port, _tls(host, tls), lambda client: _show(client, as_json))


@ring.command()
@click.argument("host")
@click.argument("port", type=PORT)
@click.option("--listen", type=PORT, default=8010, show_default=True, help="Where the page is, on this machine.")
@secured
def view(host: str, port: int, listen: int, **tls: Any) -> None:
    """Serve a page that shows the ring as it lives. Ends at ctrl-C or SIGTERM.

    \b
    Examples:
      tutti ring view 127.0.0.1 9091
    """
    from tutti.apps.ringview import serve_view

    async def serve(client: "RingClient") -> None:
        await client.members()  # there is such a ring
        click.echo(f"http://127.0.0.1:{listen}/ shows the ring; ctrl-C ends it")
        await serve_view(client, "127.0.0.1", listen)

    _with_client(host, port, _tls(host, tls), serve)


async def _show(client: "RingClient", as_json: bool) -> None:
    from tutti.services.views.ring import ring_lights

    views = await client.views()
    if as_json:
        print_json(views)
        return
    for view in views:
        _show_member(view)
    click.echo("the whole")
    _show_lights(ring_lights(views))


def _show_lights(lights: Iterable["Light"]) -> None:
    for light in lights:
        click.echo(f"  {'ok ' if light.ok else 'BAD'}         {light.name}: {light.detail}")


def _show_member(view: "RingView") -> None:
    led = " (leads)" if view.leader == view.address else ""
    click.echo(f"{view.address}{led}  {view.id[:12]}…  life {view.incarnation}")
    click.echo(f"  keys        ({view.owns_after[:12]}…, {view.id[:12]}…], copies at {', '.join(view.replicas) or '-'}")
    click.echo(f"  parts       {view.parts_owned} owned, {view.parts_copied} copies of others'")
    click.echo(f"  before      {view.predecessor or '-'}")
    click.echo(f"  successors  {', '.join(view.successors) or '-'}")
    for finger in view.fingers:
        click.echo(f"  fingers     {finger.first:>3} to {finger.last:<3} from {finger.start[:12]}… -> {finger.owner}")
    click.echo(f"  signs as    {view.signs_as}")
    click.echo(f"  chain       record {view.height} {view.digest[:12]}, committee {', '.join(view.committee) or '-'}")
    _show_lights(view.lights)


@ring.command(name="force-reform")
@click.argument("host")
@click.argument("port", type=PORT)
@secured
def force_reform(host: str, port: int, **tls: Any) -> None:
    """Go on without a majority, when the members that are missing will not come back.

    The chain is marked as degraded for ever. If the others come back, what they decided meanwhile is lost.

    \b
    Examples:
      tutti ring force-reform 127.0.0.1 5003
    """

    async def force(client: "RingClient") -> None:
        await client.reform()
        click.echo("the ring goes on with the members that are there")

    _with_client(host, port, _tls(host, tls), force)


# -- what the commands share ---------------------------------------------------------------------------


def _with_client(
    host: str, port: int, tls: "Tls | None", work: "Callable[[RingClient], Coroutine[Any, Any, None]]"
) -> None:
    import asyncio

    from tutti.apps.ringclient import RingClient, named

    async def run() -> None:
        client = RingClient(named(host, port), tls)
        try:
            await work(client)
        finally:
            await client.close()

    asyncio.run(run())


def _tls(host: str, given: Mapping[str, Any]) -> "Tls | None":
    """All three files, or none: then the host must be this machine itself, or somebody must have said --insecure."""
    from ipaddress import ip_address

    from tutti.apps.ringentry import Tls

    certificate, key, authority = given["tls_cert"], given["tls_key"], given["tls_ca"]
    if certificate is not None and key is not None and authority is not None:
        return Tls(certificate=certificate, key=key, authority=authority)
    if certificate or key or authority:
        raise click.UsageError("give --tls-cert, --tls-key and --tls-ca together")
    try:
        alone = host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        alone = False
    if not alone and not given["insecure"]:
        raise click.UsageError(
            f"{host} is on a network, where anybody could join or read along: give --tls-cert, --tls-key and --tls-ca, "
            "or say --insecure if you trust the whole network"
        )
    return None


def _address(seed: str) -> str:
    host, _, port = seed.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"expected HOST:PORT such as 10.0.0.2:9091, came {seed!r}", param_hint="--seed")
    return seed


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the members file {file}: {error}") from None


def _say(as_json: bool, facts: dict[str, str], said: str) -> None:
    click.echo(json.dumps(facts) if as_json else said)
