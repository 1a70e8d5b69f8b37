"""The command `tutti`: its subcommands, and the one place where errors become messages and exit codes."""

import os
import sys
from collections.abc import Sequence

import click

from tutti.apps.cli import (
    backup,
    catalog,
    chain,
    config,
    demo,
    doctor,
    evaluate,
    forecast,
    ledger,
    listings,
    maintenance,
    market,
    models,
    partition,
    preflight,
    quotas,
    replay,
    ring,
    ring_verify,
    run_job,
    serving,
    sim,
    world,
)
from tutti.apps.cli.exits import Exit, exit_for
from tutti.apps.cli.logs import LOG_FORMAT, last_line
from tutti.core.errors import TuttiError

BUG = "this is a mistake of Tutti, not yours; please report it"


class InOrder(click.Group):
    """Lists its commands as they were added: what a newcomer needs first comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tutti", prog_name="tutti")
def cli() -> None:
    """Train one model together, with nobody's data leaving home.

    \b
    Examples:
      tutti run --dataset digits --model mlp --rounds 20 --nodes 4
      tutti up --host 0.0.0.0
      tutti join 'http://host:8000/join#token' --data csv:path=mine.csv,target=died
      tutti why digits --round 3

    Exit codes: 0 done, 1 a mistake of Tutti, 2 bad usage or input, 3 no coordinator there, 4 refused,
    5 the job failed, 6 storage, 7 conflict, 8 a server that is needed is away. Every list has --json.
    """


for command in (
    demo.demo,
    serving.up,
    serving.join,
    serving.invite,
    run_job.run,
    forecast.forecast,
    sim.sim,
    world.world,
    ring.ring,
    listings.jobs,
    listings.nodes,
    maintenance.maintenance,
    quotas.quotas,
    listings.rounds,
    models.models,
    listings.why,
    models.predict,
    evaluate.evaluate,
    preflight.preflight,
    partition.partition,
    replay.replay,
    ledger.rewards,
    ledger.ledger,
    chain.chain,
    market.market,
    catalog.catalog,
    config.config,
    doctor.doctor,
    backup.backup,
    backup.restore,
):
    cli.add_command(command)
cli.add_command(models.model_alias)
ring.ring.add_command(ring_verify.verify)


def run(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; whatever goes wrong is said in one line, unless it is our fault."""
    noted = dict[str, str]()
    try:
        return int(cli.main(args, prog_name="tutti", standalone_mode=False, obj=noted) or Exit.OK)
    except click.ClickException as error:
        if noted.get(LOG_FORMAT) == "json":
            click.echo(last_line(error.format_message()), err=True)
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has had enough
        return Exit.OK
    except Exception as error:
        return _report(error, as_json=noted.get(LOG_FORMAT) == "json")


def _report(error: Exception, *, as_json: bool) -> int:
    code = exit_for(error)
    ours = code is Exit.BUG and not isinstance(error, TuttiError)
    if as_json:
        click.echo(last_line(BUG if ours else str(error), error if ours else None), err=True)
    elif ours:
        import traceback

        traceback.print_exc()
        click.echo(f"tutti: {BUG} with the lines above", err=True)
    else:
        click.echo(f"tutti: {error}", err=True)
    return code
