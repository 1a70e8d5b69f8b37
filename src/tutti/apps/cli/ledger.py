"""Tokens: look at the ledger, check it without trusting the coordinator, and see why a node earned what it did."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import ExistingFile, File, as_json, find_job, print_json, with_client
from tutti.core.errors import UserError

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.domain.contributions import Contribution, Proof
    from tutti.domain.ledger import Entry
    from tutti.services.views.ledger import ScoredView


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
    names = ("minted", "free", "staked", "unbonding", "owed", "escrowed", "burned")
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
    """Write every entry to a file, one line of JSON each.

    \b
    Examples:
      tutti ledger export ledger.jsonl
    """
    import msgspec

    lines = [msgspec.json.encode(entry) for entry in client.entries()]
    file.write_bytes(b"\n".join(lines) + b"\n")
    click.echo(f"{len(lines)} entries in {file}")


@ledger.command("verify")
@click.option("--key", required=True, help="The ledger's public key, as you noted it (`tutti ledger show`).")
@click.option("--head", help="The hash of an entry, noted earlier: it must still be there.")
@click.option("--file", type=ExistingFile, help="Check entries that were exported, not those of a coordinator.")
@click.option("--job", help="Check the scores and payments of this job's rounds too.")
@click.option(
    "--proof", type=ExistingFile, help="Check that a contribution (`tutti rewards --proof`) is in the ledger."
)
@click.option(
    "--signer",
    "signers",
    multiple=True,
    metavar="NODE=ADDRESS",
    help="This node's updates must be signed by the key of this address; may be repeated.",
)
@with_client
def ledger_verify(
    client: "Client",
    key: str,
    head: str | None,
    file: Path | None,
    job: str | None,
    proof: Path | None,
    signers: tuple[str, ...],
) -> None:
    """Check the whole ledger, trusting nobody.

    That is: the order, every hash, link and signature, that each operation was allowed and moved what it must, and
    that the sums hold. With --job also that the payments of each scored round follow from its scores by the published
    rule, that these are the ones whose Merkle root stands in the ledger, and that each update is signed by its node,
    always with one key; its address is what `tutti join` says on the node.

    \b
    Examples:
      tutti ledger verify --key 3b6a27bc…
      tutti ledger verify --key 3b6a27bc… --head 9f86d081… --job digits
      tutti ledger verify --key 3b6a27bc… --file ledger.jsonl --proof proof.json
      tutti ledger verify --key 3b6a27bc… --job digits --signer clinic-a=0x70997970c51812dc3a010c7d01b50e0d17dc79c8
    """
    from tutti.adapters.identities.ed25519 import verify
    from tutti.domain.ledger import verify_chain

    keys = dict(_named(text) for text in signers)
    entries = list(client.entries()) if file is None else _read(file)
    totals = verify_chain(entries, verify, key, head=head).totals()
    click.echo(f"the chain of {len(entries)} entries is whole and signed; {totals.minted} tokens are accounted for")
    if job is not None:
        found = find_job(client, job).id
        rounds = [client.scored(found, number) for number in client.rewards(found).scored]
        paid = [each.round for each in rounds if _check_round(each, entries)]
        _check_signatures([one.contribution for each in rounds for one in each.earned], keys)
        unpaid = f"; not paid yet: {', '.join(str(r.round) for r in rounds if r.round not in paid)}"
        click.echo(f"{len(paid)} rounds of {found} are paid by the rule{unpaid if len(paid) < len(rounds) else ''}")
    if proof is not None:
        _check_proof(proof, entries, keys)


def _read(file: Path) -> "list[Entry]":
    import msgspec

    from tutti.domain.ledger import Entry

    try:
        return [msgspec.json.decode(line, type=Entry) for line in file.read_bytes().splitlines() if line]
    except msgspec.MsgspecError as error:
        raise UserError(f"{file} does not hold entries as `tutti ledger export` writes them: {error}") from None


def _check_round(scored: "ScoredView", entries: "Iterable[Entry]") -> bool:
    """Whether a round is paid; raises BadProof if it is paid otherwise than by the rule."""
    from tutti.domain.contributions import check_paid

    return check_paid([each.contribution for each in scored.earned], scored.pool, entries)


def _named(text: str) -> tuple[str, str]:
    node, _, address = text.partition("=")
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", address):
        raise click.BadParameter(f"expected a node and an address, as in clinic-a=0x7099…, came {text!r}")
    return node, address.lower()


def _check_signatures(contributions: "Iterable[Contribution]", keys: dict[str, str]) -> None:
    """Say who has signed; raises BadProof for a signature that is none, or by another key than a node's own."""
    from tutti.adapters.identities.secp256k1 import verify
    from tutti.domain.contributions import check_signers

    signed = check_signers(contributions, verify, keys)
    for node, (count, address) in signed.items():
        click.echo(f"{node}: {count} updates, {f'signed by {address}' if address else 'not signed: it has no key'}")


def _check_proof(file: Path, entries: "Iterable[Entry]", keys: dict[str, str]) -> None:
    import msgspec

    from tutti.domain.contributions import Proof, check_proof, entry_of

    try:
        proof = msgspec.json.decode(file.read_bytes(), type=Proof)
    except msgspec.MsgspecError as error:
        raise UserError(f"{file} does not hold a proof as `tutti rewards --proof` writes it: {error}") from None
    check_proof(proof)
    entry = entry_of(proof, entries)
    one = proof.contribution
    _check_signatures([one], keys)
    click.echo(
        f"the update {one.digest[:12]} of {one.node} is among those of round {one.round} of {one.job} "
        f"and earned {one.payment} (entry {entry.seq})"
    )


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
        _print_rewards(client, found, as_json)
        return
    scored = client.scored(found, number)
    earned = [each for each in scored.earned if node in (None, each.contribution.node)]
    if as_json:
        print_json(earned)
    else:
        click.echo("\n".join(each.why for each in earned) + (f"\n{scored.note}" if scored.note else ""))
    if proof is not None and node is not None:
        _write_proof(client.proof(found, number, node), proof)


def _print_rewards(client: "Client", job: str, as_json: bool) -> None:
    found = client.rewards(job)
    if as_json:
        print_json(found)
        return
    state = "settled" if found.settled else found.unpaid or f"{len(found.waiting)} rounds wait to be scored"
    click.echo(f"{found.pool} tokens a round from {found.sponsor}; {len(found.scored)} rounds scored; {state}\n")
    click.echo(text.table(("node", "earned"), list(found.earned.items())))


def _write_proof(proof: "Proof", file: Path) -> None:
    import msgspec

    file.write_bytes(msgspec.json.format(msgspec.json.encode(proof), indent=1))
    click.echo(f"the proof is in {file}", err=True)
