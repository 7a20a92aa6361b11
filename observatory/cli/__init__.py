"""The command `observatory`: parses options, shows progress, prints results, sets the exit code.

Each module registers one group of commands when it is imported: `stack` has up, preview, down, status, outputs, env
and bootstrap, `delivery` has deploy application, release, rollout and rollback, the others are named after theirs.
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused, nothing changed; 130 interrupted.
"""

from __future__ import annotations

import errno
import itertools
import sys
from typing import NoReturn

from typer.exceptions import TyperException

from observatory.cli import (  # noqa: F401 - each registers its commands
    access,
    backup,
    backup_drill,
    backup_flashback,
    certificates,
    console,
    data,
    database,
    delivery,
    key,
    logs,
    migration,
    report,
    scheduler,
    sessions,
    silence,
    stack,
    verify,
)
from observatory.cli.app import app, print_json
from observatory.cli.interrupted import message_of
from observatory.cli.terminal import print_error
from observatory.errors import FAILED, INTERRUPTED, WRONG_USAGE, ObservatoryError
from observatory.interruption import interrupt_on_signals

REMEDIES = {
    errno.ENOSPC: "; free some disk and run the command again",
    errno.EROFS: "; make the checkout writable",
    errno.EACCES: "; run the command as the owner of the checkout",
}


def main() -> None:
    """Run the command and end the process with its exit code."""
    interrupt_on_signals()
    try:
        app(standalone_mode=True)
    except Exception as error:
        _fail(error)
    except KeyboardInterrupt as interrupt:  # before typer runs the command
        _end(message_of(interrupt, sys.argv[1:]), "Interrupted", INTERRUPTED)
    except SystemExit as end:
        if isinstance(usage := end.__context__, TyperException):  # typer has printed it on stderr
            _print_document(usage.format_message(), type(usage).__name__, WRONG_USAGE)
        if end.code != INTERRUPTED:
            raise
        # typer turns KeyboardInterrupt into this exit code and prints no message.
        _end(message_of(end, sys.argv[1:]), "Interrupted", INTERRUPTED)


def _fail(error: Exception) -> NoReturn:
    """End the process with the error's exit code; an unexpected error keeps its traceback."""
    if isinstance(error, ObservatoryError):
        _end(str(error), type(error).__name__, error.exit_code)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        _end(f"{place}{error.strerror or error}{REMEDIES.get(error.errno or 0, '')}", "OSError", FAILED)
    _print_document(f"unexpected error, a fault of this program: {error!r}", type(error).__name__, FAILED)
    raise error


def _end(message: str, kind: str, code: int) -> NoReturn:
    """Print the error on stderr, with `--output json` also as a document on stdout, and end the process."""
    print_error(message)
    _print_document(message, kind, code)
    sys.exit(code)


def _print_document(message: str, kind: str, code: int) -> None:
    """Print the error as a document on stdout if the command line has `--output json`."""
    if {"--output=json"} & set(sys.argv) or ("--output", "json") in itertools.pairwise(sys.argv):
        print_json({"error": {"kind": kind, "message": message}, "exit_code": code})
