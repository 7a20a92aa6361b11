"""The signals that stop a command: Ctrl-C, `kill`, and a terminal that closes.

Each ends the work as an exception does, so that child processes are ended, locks released and partial files removed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object]


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop this process, without those that its parent set to be ignored, as `nohup` does."""
    return tuple(number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN)


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on every signal that stops this process, from now on. Main thread only."""
    for number in stop_signals():
        signal.signal(number, _interrupt)


@contextmanager
def handle_stop_signals(handler: Handler) -> Iterator[None]:
    """Call `handler` on every signal that stops this process during the block; outside the main thread do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on every signal that stops this process during the block.

    The command does so for its whole run; a program that calls the library may not.
    """
    with handle_stop_signals(_interrupt):
        yield


@contextmanager
def delayed_signals() -> Iterator[Callable[[], bool]]:
    """Let every signal that stops this process wait for the end of the block; yield a function that says if one does.

    The block must be short, and end its waits when one does. If it raises, that ends the work, and no signal follows.
    """
    waiting: list[int] = []
    with handle_stop_signals(lambda number, _frame: waiting.append(number)):
        yield lambda: bool(waiting)
    if waiting:
        signal.raise_signal(waiting[0])


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)
