"""Tokens: look at the ledger, check it without trusting the coordinator, and see why a node earned what it did."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import (
    ExistingFile,
    File,
    as_json,
    find_job,
    named_signers,
    print_json,
    signer_option,
    with_client,
)

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.domain.contributions import Proof
    from tutti.domain.ledger import Totals


@click.group()
def ledger() -> None:
    """Look at tokens and check the ledger.

    \b
    Examples:
      tutti ledger show
      tutti ledger verify --key 3b6a27bc… --head 9f86d081…
    """


@ledger.command("show")
@as_json
@with_client
def ledger_show(client: "Client", as_json: bool) -> None:
    """Show the sums, the public key, and the newest entry's hash: note the last two for `tutti ledger verify`.

    \b
    Examples:
      tutti ledger show
      tutti ledger show --json
    """
    found = client.ledger()
    if as_json:
        print_json(found)
        return
    if found.public_key:
        click.echo(f"key    {found.public_key}\nhead   {found.head} (entry {found.entries - 1})\n")
    else:
        click.echo(f"on a chain (`tutti chain status`), the last of {found.entries} transactions: {found.head}\n")
    names = ("minted", "free", "staked", "unbonding", "owed", "escrowed", "burned", "stray")
    click.echo(text.table(("tokens", "amount"), [(name, getattr(found, name)) for name in names]))


@ledger.command("account")
@click.argument("account")
@as_json
@with_client
def ledger_account(client: "Client", account: str, as_json: bool) -> None:
    """Show what an account holds. A node's account is node:NAME.

    \b
    Examples:
      tutti ledger account treasury
      tutti ledger account node:clinic-a --json
    """
    found = client.account(account)
    if as_json:
        print_json(found)
    else:
        names = ("free", "staked", "unbonding", "owed")
        click.echo(text.table(("tokens", "amount"), [(name, getattr(found, name)) for name in names]))


@ledger.command("mint")
@click.argument("account")
@click.argument("amount", type=click.IntRange(1))
@click.option("--key", required=True, help="A name for this very wish: repeated with it, nothing more is minted.")
@with_client
def ledger_mint(client: "Client", account: str, amount: int, key: str) -> None:
    """Make new tokens for an account, such as the sponsor of a job's rewards.

    \b
    Examples:
      tutti ledger mint treasury 100000 --key start-of-the-year
    """
    click.echo(f"{account} has {client.mint(account, amount, key=key).free} tokens")


@ledger.command("transfer")
@click.argument("source")
@click.argument("to")
@click.argument("amount", type=click.IntRange(1))
@click.option("--key", required=True, help="A name for this very wish: repeated with it, nothing more is moved.")
@with_client
def ledger_transfer(client: "Client", source: str, to: str, amount: int, key: str) -> None:
    """Move tokens of one account to another; on a chain, to any address too.

    \b
    Examples:
      tutti ledger transfer treasury client:lab 500 --key november
      tutti ledger transfer node:clinic-a 0x70997970C51812dc3A010C7d01b50e0d17dc79C8 100 --key payout
    """
    click.echo(f"{source} has {client.transfer(source, to, amount, key=key).free} tokens left")


@ledger.command("claim")
@click.argument("account")
@click.option("--key", required=True, help="A name for this very wish: repeated with it, nothing more is claimed.")
@with_client
def ledger_claim(client: "Client", account: str, key: str) -> None:
    """Take everything that is owed to an account.

    \b
    Examples:
      tutti ledger claim node:clinic-a --key november
    """
    click.echo(f"{account} has {client.claim(account, key=key).free} tokens")


@ledger.command("export")
@click.argument("file", type=File)
@with_client
def ledger_export(client: "Client", file: Path) -> None:
    """Write everything that `tutti ledger verify --file` needs to a file, one line of JSON each.

    That is every entry, or on a chain every transaction (and block, of an embedded one), and all scored rounds.

    \b
    Examples:
      tutti ledger export ledger.jsonl
    """
    import msgspec

    from tutti.apps.ledger_check import ask

    lines = [msgspec.json.encode(line) for line in ask(client, [each.job for each in client.all_rewards()])]
    file.write_bytes(b"\n".join(lines) + b"\n")
    click.echo(f"{len(lines)} lines in {file}")


@ledger.command("verify")
@click.option(
    "--key", required=True, help="The ledger's public key, on a chain the operator's address, as you know it."
)
@click.option("--head", help="The hash of an entry or transaction, noted earlier: it must still be there.")
@click.option("--file", type=ExistingFile, help="Check what was exported; no coordinator is asked.")
@click.option("--job", help="Check the scores, payments and signatures of this job's rounds too.")
@click.option(
    "--proof", type=ExistingFile, help="Check that a contribution (`tutti rewards --proof`) is in the ledger."
)
@signer_option
@click.option("--rpc", help="Of tokens on a chain: a node that you trust.  [default: the coordinator's]")
@with_client
def ledger_verify(
    client: "Client",
    key: str,
    head: str | None,
    file: Path | None,
    job: str | None,
    proof: Path | None,
    signers: tuple[str, ...],
    rpc: str | None,
) -> None:
    """Check the whole ledger, trusting no coordinator.

    That is: the order, every hash, link and signature, that each operation was allowed and moved what it must, and
    that the sums hold. On a chain: that each transaction is signed, was carried out and does what is said of it, that
    nobody is owed what was not paid for, and the sums. A chain that the coordinator keeps in its own process is
    executed again.

    With --job (from a file: always) also that no round is left out that was scored or paid, that the payments of each
    follow from its scores by the published rule, that standings go on from round to round, that the audits are those
    that were drawn, that the payments are the ones whose Merkle root stands in the ledger, and that each update is
    signed by its node, always with one key; its address is what `tutti join` says on the node.

    \b
    Examples:
      tutti ledger verify --key 3b6a27bc…
      tutti ledger verify --key 3b6a27bc… --head 9f86d081… --job digits
      tutti ledger verify --key 3b6a27bc… --file ledger.jsonl --proof proof.json
      tutti ledger verify --key 3b6a27bc… --job digits --signer clinic-a=0x70997970c51812dc3a010c7d01b50e0d17dc79c8
      tutti ledger verify --key 0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc --file ledger.jsonl --rpc http://my-node:8545
    """
    from tutti.apps import ledger_check as its
    from tutti.domain.contributions import check_heard

    keys = named_signers(signers)
    signed: dict[str, tuple[int, str]] = {}
    if file is not None:
        told = its.Told.of(its.read(file))
    else:
        job = find_job(client, job).id if job is not None else None
        told = its.Told.of(its.ask(client, [job] if job is not None else []))
    if told.chain is None:
        totals = its.check_books(told, key, head)
        click.echo(f"the chain of {len(told.entries)} entries is whole and signed; {_accounted(totals)}")
    else:
        totals = its.check_chain(told, key, head, rpc)
        where = f"on chain {told.chain.chain_id}" + (", executed again" if told.blocks and not rpc else "")
        click.echo(f"{len(told.transactions)} transactions are {where}, signed and as told; {_accounted(totals)}")
    if file is not None or job is not None:
        paid, unpaid = its.check_rounds(told, job)
        later = f"; not paid yet: {', '.join(str(each.round) for each in unpaid)}" if unpaid else ""
        click.echo(f"{len(paid)} rounds{f' of {job}' if job else ''} are paid by the rule, and standings go on{later}")
        for its_rewards in (one for one in told.rewards if one.commitment):
            drawn = "are those that its secret drew" if its_rewards.secret else "can be checked once its secret is told"
            click.echo(f"audits of {its_rewards.job}, committed to by {its_rewards.commitment[:16]}…, {drawn}")
        signed = its.check_signed([each.contribution for one in (*paid, *unpaid) for each in one.earned], keys)
        _say_signed(signed)
    if proof is not None:
        one, seq = its.check_one(proof, told)
        its_own = its.check_signed([one], keys)
        _say_signed(its_own)
        signed |= its_own
        click.echo(
            f"the update {one.digest[:12]} of {one.node} is among those of round {one.round} of {one.job} "
            f"and earned {one.payment} ({'entry' if told.chain is None else 'transaction'} {seq})"
        )
    check_heard(keys, signed)


def _accounted(totals: "Totals") -> str:
    return f"{totals.minted} tokens are accounted for"


def _say_signed(signed: dict[str, tuple[int, str]]) -> None:
    for node, (count, address) in signed.items():
        click.echo(f"{node}: {count} updates, {f'signed by {address}' if address else 'not signed: it has no key'}")


@click.command()
@click.argument("job")
@click.option("--round", "number", type=click.IntRange(1), help="Say what each node earned in this round, and why.")
@click.option("--node", help="Only this node.")
@click.option("--proof", type=File, help="Write the proof that the node's update is among the round's to this file.")
@as_json
@with_client
def rewards(
    client: "Client", job: str, number: int | None, node: str | None, proof: Path | None, as_json: bool
) -> None:
    """Show what the nodes of a job have earned, and why.

    \b
    Examples:
      tutti rewards digits
      tutti rewards digits --round 3 --node clinic-a
      tutti rewards digits --round 3 --node clinic-a --proof proof.json
    """
    found = find_job(client, job).id
    if proof is not None and (number is None or node is None):
        raise click.UsageError("--proof needs --round and --node")
    if number is None:
        _print_rewards(client, found, node, as_json)
        return
    scored = client.scored(found, number)
    earned = [each for each in scored.earned if node in (None, each.contribution.node)]
    if as_json:
        print_json(earned)
    else:
        click.echo("\n".join(each.why for each in earned) + (f"\n{scored.note}" if scored.note else ""))
    if proof is not None and node is not None:
        _write_proof(client.proof(found, number, node), proof)


def _print_rewards(client: "Client", job: str, node: str | None, as_json: bool) -> None:
    found = client.rewards(job)
    if node is not None and node not in found.earned:
        from tutti.core.errors import NotFound

        raise NotFound(f"no update of {node!r} was scored in {job}")
    if as_json:
        print_json(found)
        return
    state = "settled" if found.settled else found.unpaid or f"{len(found.waiting)} rounds wait to be scored"
    click.echo(f"{found.pool} tokens a round from {found.sponsor}; {len(found.scored)} rounds scored; {state}")
    click.echo(f"audits are drawn by a secret with the hash {found.commitment}\n")
    click.echo(text.table(("node", "earned"), [each for each in found.earned.items() if node in (None, each[0])]))


def _write_proof(proof: "Proof", file: Path) -> None:
    import msgspec

    file.write_bytes(msgspec.json.format(msgspec.json.encode(proof), indent=1))
    click.echo(f"the proof is in {file}", err=True)
