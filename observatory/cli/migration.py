"""`observatory migration`: creates migration files."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import Output, OutputOption, app, print_json
from observatory.cli.terminal import print_result

group = typer.Typer(help="Create migration files.", no_args_is_help=True)
app.add_typer(group, name="migration")


@group.callback()
def migration() -> None:
    """Create migration files."""


@group.command()
def new(
    name: Annotated[str, typer.Argument(help="The title, such as add_region; the number is added.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Write the template of a new migration with the next free number from 500, and print its path.

    Numbers below 500 belong to the product. Exit code 2: the name is not usable. Exit code 3: it exists.
    """
    path = operations.create_migration(name)
    if output is Output.JSON:
        print_json({"file": str(path)})
    else:
        print_result(str(path))
