"""The log of a host process: in the daemons' log directory, rotated with their logs."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from io import TextIOWrapper

from observatory.runtime import Sandbox
from observatory.scheduling.host_process import log_file, log_name


class _RotatedFile(logging.handlers.WatchedFileHandler):
    """The log file: created again, owned by the daemons' user, after a rotation."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self._sandbox, self._name = sandbox, name
        super().__init__(log_file(sandbox, name))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless the stack's home was removed: it must not be created again."""
        if self._sandbox.home.is_dir():
            super().emit(record)

    def _open(self) -> TextIOWrapper:
        log = self._sandbox.open_append(log_name(self._name))
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
