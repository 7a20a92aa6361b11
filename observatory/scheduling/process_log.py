"""How a host process runs: once for a stack, with a log in the daemons' log directory, rotated with their logs."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

from observatory.files import locks
from observatory.runtime import Sandbox
from observatory.scheduling.host_process import lock_file, log_file, log_name, wanted_file


class _RotatedFile(logging.handlers.WatchedFileHandler):
    """The log file: created again, owned by the daemons' user, after a rotation."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self._sandbox, self._file = sandbox, log_name(name)  # `_name` is of the base class
        super().__init__(log_file(sandbox, name))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless the stack's home was removed: it must not be created again.

        A file that cannot be opened loses the record and ends no thread: there may be no room for it, or a daemon has
        put something else in its place.
        """
        if not self._sandbox.home.is_dir():
            return
        try:
            super().emit(record)
        except Exception:
            self.handleError(record)

    def _open(self) -> TextIOWrapper:
        log = self._sandbox.open_append(self._file)
        return TextIOWrapper(log, encoding="utf-8", line_buffering=True)


def log_to_file(log: logging.Logger, sandbox: Sandbox, name: str) -> None:
    """Log to the file of the process `name`, and to a terminal where there is one."""
    handlers: list[logging.Handler] = [_RotatedFile(sandbox, name)]
    if sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    formatter.converter = time.gmtime
    for handler in handlers:
        handler.setFormatter(formatter)
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def run_alone(
    name: str, log: logging.Logger, arguments: Sequence[str], work: Callable[[Sandbox, Path, str], None]
) -> None:
    """Do the work of the process `name` for the stack of a command line, unless it should not run or runs already.

    Args:
        name: of the process, of its lock and of its log.
        log: is written to the log file.
        arguments: checkout, stack, the stack's home and the root filesystem.
        work: gets the sandbox, the checkout and the stack.
    """
    root, stack, home, rootfs = arguments
    sandbox = Sandbox(Path(home), Path(rootfs))
    if not wanted_file(sandbox).exists():
        return
    logging.raiseExceptions = False  # a full disk must not end it
    with locks.claim(lock_file(sandbox, name)):
        log_to_file(log, sandbox, name)
        work(sandbox, Path(root), stack)
