"""`tutti maintenance`: let nothing new begin for a while."""

from typing import TYPE_CHECKING

import click

from tutti.apps.cli.options import with_client

if TYPE_CHECKING:
    from tutti.apps.client import Client


@click.group()
def maintenance() -> None:
    """Let nothing new begin while you work on machines or stores.

    \b
    Examples:
      tutti maintenance begin "new disks"
      tutti maintenance end
    """


@maintenance.command()
@click.argument("reason", default="asked")
@with_client
def begin(client: "Client", reason: str) -> None:
    """Pause jobs once their open round is over, and refuse new ones, saying REASON.

    \b
    Examples:
      tutti maintenance begin "new disks"
    """
    client.begin_maintenance(reason)
    click.echo("nothing new begins; `tutti maintenance end` takes that back")


@maintenance.command()
@with_client
def end(client: "Client") -> None:
    """Go on with what was paused for it.

    \b
    Examples:
      tutti maintenance end
    """
    client.end_maintenance()
    click.echo("jobs go on")
