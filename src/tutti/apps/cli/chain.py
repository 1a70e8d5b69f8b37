"""The chain: deploy the contracts, connect to those that are there, and see what stands on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import ExistingFile, Folder, as_json, find_job, print_json, with_client

if TYPE_CHECKING:
    from tutti.apps.client import Client

data_dir = click.option(
    "--data-dir", type=Folder, default="tutti-data", show_default=True, help="The coordinator's, as of `tutti up`."
)


@click.group()
def chain() -> None:
    """Record sessions, contributions and tokens on a chain instead of in the coordinator's own ledger.

    \b
    Examples:
      tutti chain deploy
      tutti chain deploy --rpc http://127.0.0.1:8545
      tutti chain status
    """


@chain.command("deploy")
@click.option("--rpc", default="embedded", show_default=True, help="A node's URL; `embedded`: in this process.")
@data_dir
@click.option("--cap", type=click.IntRange(1), help="The most tokens that may ever be minted.  [default: 2^53]")
@click.option("--unbonding", type=click.IntRange(0), help="Seconds from unstake to withdraw.  [default: a week]")
@click.option(
    "--veto", type=click.IntRange(0), help="Seconds in which a round's payments can be vetoed.  [default: a day]"
)
@click.option("--penalty", type=click.IntRange(1), help="What signing two updates for one costs.  [default: 1000]")
@click.option("--guardian", help="Whose address may veto and pause, if not this coordinator's.")
@click.option("--admin", help="Who may grant roles later, such as a timelock's address.  [default: nobody]")
@as_json
def chain_deploy(rpc: str, data_dir: Path, as_json: bool, **rules: Any) -> None:
    """Deploy the contracts and write their addresses to chain.json in the data directory.

    `tutti up` with this data directory uses them from then on. The keys of the roles come from chain.key beside it:
    keep a copy. A development node gives the gas money; on any other the addresses of `tutti chain keys` need some.

    \b
    Examples:
      tutti chain deploy
      tutti chain deploy --rpc http://127.0.0.1:8545 --veto 3600
    """
    import asyncio

    from tutti.apps.chain import deploy_chain

    given = {name: value for name, value in rules.items() if value is not None}
    deployment = asyncio.run(deploy_chain(data_dir, rpc, given))
    if as_json:
        print_json({"rpc": deployment.rpc, "chain_id": deployment.chain_id, "contracts": deployment.contracts})
        return
    click.echo(text.table(("contract", "address"), list(deployment.contracts.items())))
    click.echo(f"\nwritten to {data_dir / 'chain.json'}; `tutti up --data-dir {data_dir}` uses them")


@chain.command("connect")
@click.argument("file", type=ExistingFile)
@data_dir
def chain_connect(file: Path, data_dir: Path) -> None:
    """Use contracts that are there, as `npx hardhat run scripts/deploy.js` names them in contracts/deployments.

    \b
    Examples:
      tutti chain connect contracts/deployments/localhost.json
    """
    import asyncio

    from tutti.apps.chain import connect_chain

    asyncio.run(connect_chain(data_dir, file))
    click.echo(f"written to {data_dir / 'chain.json'}; `tutti up --data-dir {data_dir}` uses them")


@chain.command("keys")
@data_dir
@as_json
def chain_keys(data_dir: Path, as_json: bool) -> None:
    """Show the addresses of this coordinator's roles, for whoever deploys contracts for it, or sends it gas money.

    \b
    Examples:
      tutti chain keys
      export TUTTI_OPERATOR=$(tutti chain keys --json | jq -r .operator)
    """
    from tutti.apps.chain import chain_roles

    roles = chain_roles(data_dir)
    if as_json:
        print_json(roles)
    else:
        click.echo(text.table(("role", "address"), list(roles.items())))


@chain.command("veto")
@click.argument("round", type=click.IntRange(0))
@click.option("--coordinator", help="Whose round it is, by address.  [default: this data directory's]")
@data_dir
def chain_veto(round: int, coordinator: str | None, data_dir: Path) -> None:
    """Take back a round of payments, and all after it, before anything can be claimed from them.

    ROUND counts the payments of a coordinator from 0, as `distribute` on the chain says. The tokens return to their
    pools. The data directory is the guardian's: it has chain.json and the guardian's chain.key.

    \b
    Examples:
      tutti chain veto 12
      tutti chain veto 0 --coordinator 0x2546BcD3c84621e976D8185a91A922aE77ECEc30
    """
    _guard(data_dir, "veto", coordinator, round)
    click.echo(f"round {round} and all after it are taken back")


@chain.command("pause")
@data_dir
def chain_pause(data_dir: Path) -> None:
    """Let no tokens into stakes, escrows and pools; all that is in there can still come out.

    \b
    Examples:
      tutti chain pause
    """
    _guard(data_dir, "pause")
    click.echo("stakes, escrows and pools take nothing in; `tutti chain unpause` ends it")


@chain.command("unpause")
@data_dir
def chain_unpause(data_dir: Path) -> None:
    """Let tokens into stakes, escrows and pools again.

    \b
    Examples:
      tutti chain unpause
    """
    _guard(data_dir, "unpause")
    click.echo("stakes, escrows and pools take tokens in again")


def _guard(data_dir: Path, order: str, coordinator: str | None = None, round: int = 0) -> None:
    import asyncio

    from tutti.apps.chain import guard

    asyncio.run(guard(data_dir, order, coordinator, round))


@chain.command("status")
@as_json
@with_client
def chain_status(client: "Client", as_json: bool) -> None:
    """Show whether the coordinator's chain answers, and what its contracts hold.

    \b
    Examples:
      tutti chain status
      tutti chain status --json
    """
    found = client.chain()
    if as_json:
        print_json(found)
        return
    if not found.connected:
        click.echo(f"not connected: {found.error}")
        return
    click.echo(f"{found.node}, chain {found.chain_id}, block {found.block}; {found.sessions} sessions")
    click.echo(f"tokens: {found.minted} minted, {found.staked} staked, {found.escrowed} in escrow, {found.owed} owed")
    click.echo(f"{found.waiting} records wait{': ' + found.error if found.error else ''}\n")
    click.echo(text.table(("contract", "address"), list(found.contracts.items())))


@chain.command("session")
@click.argument("job")
@click.option("--round", "number", type=click.IntRange(1), help="The root that is recorded of this round.")
@click.option("--node", help="With --round: let the contract check that this node's update is in it.")
@as_json
@with_client
def chain_session(client: "Client", job: str, number: int | None, node: str | None, as_json: bool) -> None:
    """Show what the chain has of a job.

    \b
    Examples:
      tutti chain session digits
      tutti chain session digits --round 3 --node clinic-a
    """
    found = find_job(client, job).id
    if node is not None and number is None:
        raise click.UsageError("--node needs --round")
    view: Any
    if number is None:
        view = client.chain_session(found)
    elif node is None:
        view = client.chain_round(found, number)
    else:
        view = client.chain_proof(found, number, node)
    if as_json:
        print_json(view)
    elif node is not None:
        said = "finds" if view.verified else "does not find"
        click.echo(f"the contract {said} {node}'s update {view.proof.contribution.digest[:12]} in round {number}")
    else:
        click.echo(
            text.table(("what", "on the chain"), [(name, getattr(view, name)) for name in view.__struct_fields__])
        )
