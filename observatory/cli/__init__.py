"""The command `observatory`: parses options, shows progress, prints results, sets the exit code.

Each module registers its commands when it is imported: `COMMANDS` says which module has which, and only those of the
command that is called are imported.
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused, nothing changed; 130 interrupted;
141 the reader of stdout has closed it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import os
import select
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from typer.exceptions import TyperException

from observatory.cli.app import PipeClosedError, app, print_json
from observatory.cli.interrupted import message_of
from observatory.cli.terminal import print_error
from observatory.errors import FAILED, INTERRUPTED, OUTPUT_CLOSED, WRONG_USAGE, ObservatoryError
from observatory.interruption import interrupt_on_signals

STDOUT = 1
REMEDIES = {
    errno.ENOSPC: "; free some disk and run the command again",
    errno.EROFS: "; make the checkout writable",
    errno.EACCES: "; run the command as the owner of the checkout",
}
# The modules that register a command, and all that is below it.
COMMANDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("up", "status", "preview", "outputs", "down", "env", "bootstrap"), ("stack",)),
    "scheduler": ("scheduler",),
    "deploy": ("database", "delivery"),
    **dict.fromkeys(("rollback", "release", "rollout"), ("delivery",)),
    "console": ("console",),
    "verify": ("verify",),
    "report": ("report",),
    "logs": ("logs",),
    "silence": ("silence",),
    **dict.fromkeys(("psql", "exec"), ("sessions",)),
    "backup": ("backup", "backup_drill", "backup_flashback", "database_rollback"),
    "migration": ("migration",),
    "data": ("data",),
    "key": ("key",),
    "rotate-passwords": ("access",),
    "certificates": ("certificates",),
}


def main() -> None:
    """Run the command and end the process with its exit code."""
    interrupt_on_signals()
    load_commands(sys.argv[1:])
    try:
        _run()
    except SystemExit as end:
        by_typer = isinstance(end.__context__, BrokenPipeError)  # while it printed a help text
        lost = _lost_output()
        if by_typer or (isinstance(lost, BrokenPipeError) and not end.code):
            sys.exit(OUTPUT_CLOSED)
        if lost and not end.code:
            _fail(lost)
        raise


def load_commands(words: Sequence[str] = ()) -> None:
    """Register the commands of a command line: the one that it begins with, none for the version, else all."""
    if list(words) == ["--version"]:
        return
    every = sorted({module for modules in COMMANDS.values() for module in modules})
    for module in COMMANDS.get(words[0], every) if words else every:
        importlib.import_module(f"observatory.cli.{module}")


def _lost_output() -> OSError | None:
    """Write the rest of the output; return what prevented it, such as a full disk, and discard the rest then."""
    try:
        sys.stdout.flush()
    except OSError as error:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, STDOUT)  # or Python's own flush at the end would fail
        os.close(devnull)
        return error
    return None


def _reader_has_gone() -> bool:
    ends = select.poll()
    ends.register(STDOUT, 0)  # without events it reports only that the other end is closed
    return bool(ends.poll(0))


def _run() -> None:
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
    if isinstance(error, PipeClosedError) and _reader_has_gone():
        sys.exit(OUTPUT_CLOSED)
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
        with contextlib.suppress(OSError):  # the message is on stderr, and the exit code stays that of the error
            print_json({"error": {"kind": kind, "message": message}, "exit_code": code})
