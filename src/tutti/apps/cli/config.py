"""`tutti config`: which settings a coordinator would start with here, and where each comes from."""

from typing import Any

import click

from tutti.apps.cli.options import as_json as with_json
from tutti.apps.cli.options import print_json
from tutti.apps.cli.serving import checked, up
from tutti.apps.cli.settings import origin, settings_of, shown
from tutti.apps.cli.text import table


@click.group()
def config() -> None:
    """Look at settings before they count.

    \b
    Examples:
      tutti config show
      tutti config show --config coordinator.toml --json
    """


@config.command()
@with_json
@click.pass_context
def show(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Print every setting of `tutti up` with its value and where that comes from, and check them.

    Takes the options of `tutti up`, and looks at the same variables and file. The command line counts more than the
    environment, and that more than the file. Passwords in addresses are not shown.

    \b
    Examples:
      tutti config show
      tutti config show --config coordinator.toml --port 9000
      TUTTI_MAX_NODES=500 tutti config show --json
    """
    checked(values)
    found = [(p, shown(values[str(p.name)]), origin(ctx, p)) for p in settings_of(up)]
    if as_json:
        print_json([{"setting": p.opts[0].removeprefix("--"), "value": v, "origin": o} for p, v, o in found])
        return
    click.echo(table(["setting", "value", "origin"], [[p.opts[0].removeprefix("--"), v, o] for p, v, o in found]))


show.params = [*(param for param in up.params if param.name not in ("as_json", "until_eof")), *show.params]
