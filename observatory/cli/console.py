"""`observatory console`: a link that opens the read-only web page of a stack."""

from __future__ import annotations

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import print_notice


@app.command()
def console(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Print a link that opens the stack's web page once.

    The page shows the stack and changes nothing. `observatory up` starts it, on this machine's loopback only.
    """
    link = operations.open_console(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json({"url": link})
        return
    print(link)  # noqa: T201 - bare, for $(...)
    print_notice("The link works once, within five minutes.")
