"""Being stopped from outside: Ctrl-C, `kill`, a terminal that closes.

Each ends what is under way as an exception does, so that children are ended, locks released and half files removed.
"""

from __future__ import annotations

import signal
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a command: those that whoever started it does not want ignored, as `nohup` does."""
    return tuple(number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN)


def interrupt_on_signals() -> None:
    """Turn every signal that stops a command into KeyboardInterrupt. Only in the main thread."""
    for number in heeded():
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
