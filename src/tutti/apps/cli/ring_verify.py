"""`tutti ring verify`: check a member's chain, and who has signed what in it."""

from pathlib import Path

import click

from tutti.apps.cli.options import as_json, named_signers, print_json, signer_option


@click.command()
@click.argument("state_dir", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--head", help="The digest of a record, noted earlier: it must still be there.")
@signer_option
@as_json
def verify(state_dir: Path, head: str | None, signers: tuple[str, ...], as_json: bool) -> None:
    """Check the chain of a member of a ring from its state folder, or a copy of it, trusting nobody.

    That is: that each record follows from the one before it, proposed by who might; and that each update that counted
    is signed by the key that its node has named, for the model that it was given. `tutti ring show` says as which
    address a member signs.

    \b
    Examples:
      tutti ring verify ~/.local/state/tutti/ring/127.0.0.1_5001
      tutti ring verify copy --signer 127.0.0.1-5001=0x70997970c51812dc3a010c7d01b50e0d17dc79c8
    """
    from tutti.apps.ring_check import check, read

    found = check(read(state_dir), named_signers(signers), head)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.records} records follow from one another, the newest is {found.head}")
    for each in found.signers:
        click.echo(f"{each.node}: {each.updates} updates, signed by {each.address} from record {each.since} on")
