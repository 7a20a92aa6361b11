"""The command `observatory`: parses, shows progress, prints, and chooses the exit code. Nothing else.

One module for each group of commands; importing it registers them.
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused, nothing changed; 130 interrupted.
"""

from __future__ import annotations

import errno
import itertools
import sys
from typing import NoReturn

from observatory.cli import (  # noqa: F401 - each registers its commands
    access,
    backup,
    data,
    database,
    delivery,
    logs,
    report,
    scheduler,
    silence,
    stack,
    verify,
)
from observatory.cli.app import app, print_json
from observatory.cli.terminal import complain
from observatory.errors import FAILED, INTERRUPTED, ObservatoryError
from observatory.interruption import interrupt_on_signals

REMEDIES = {
    errno.ENOSPC: "; free some disk and run the command again",
    errno.EROFS: "; the checkout must be writable",
    errno.EACCES: "; the checkout must be yours",
}


def main() -> None:
    """Run the command and end the process with its exit code."""
    interrupt_on_signals()
    try:
        app(standalone_mode=True)
    except Exception as error:
        _fail(error)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # Which is what typer makes of KeyboardInterrupt, without a word.
        _end("interrupted; run the command again, it goes on where it was", "Interrupted", INTERRUPTED)


def _fail(error: Exception) -> NoReturn:
    """End the process with the error's exit code; an unexpected error keeps its traceback."""
    if isinstance(error, ObservatoryError):
        _end(str(error), type(error).__name__, error.exit_code)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        _end(f"{place}{error.strerror or error}{REMEDIES.get(error.errno or 0, '')}", "OSError", FAILED)
    raise error


def _end(message: str, kind: str, code: int) -> NoReturn:
    """Tell what went wrong, to people and, where they asked for JSON, to programs; end the process."""
    complain(message)
    if {"--output=json"} & set(sys.argv) or ("--output", "json") in itertools.pairwise(sys.argv):
        print_json({"error": {"kind": kind, "message": message}, "exit_code": code})
    sys.exit(code)
