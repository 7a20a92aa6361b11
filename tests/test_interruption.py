"""Every signal that stops a command raises KeyboardInterrupt, and the handlers from before come back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from observatory.interruption import STOPPING, delayed_signals, handle_stop_signals, interruptible, stop_signals


@pytest.fixture
def _hangup_ignored() -> Iterator[None]:
    """Ignore SIGHUP, as `nohup` does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", STOPPING)
def test_a_stop_signal_interrupts_the_block_and_its_handler_is_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=number.name), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_delayed_signal_interrupts_after_the_block() -> None:
    seen: list[bool] = []

    def work() -> None:
        with delayed_signals() as is_interrupted:
            seen.append(is_interrupted())
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            seen.append(is_interrupted())
        seen.append(False)

    with interruptible(), pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        work()
    assert seen == [False, True]


def test_the_error_of_a_block_is_raised_instead_of_its_delayed_signal() -> None:
    def work() -> None:
        with delayed_signals():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("failed")

    with interruptible(), pytest.raises(ValueError, match="failed"):
        work()


@pytest.mark.usefixtures("_hangup_ignored")
def test_an_ignored_signal_stays_ignored() -> None:
    assert signal.SIGHUP not in stop_signals()
    with interruptible():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_thread_changes_no_handler() -> None:
    seen: list[object] = []

    def work() -> None:
        with handle_stop_signals(lambda *_: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
