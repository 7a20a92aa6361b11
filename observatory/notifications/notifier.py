"""Sends notices in the background, again and again for a while, and says in the journal which one was not taken."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential_jitter,
)

from observatory.documents.journal import Entry
from observatory.notifications.channels import Channel, RefusedError, UnavailableError
from observatory.notifications.messages import Notice, notice_of

ATTEMPTS = 5
RETRY_SECONDS = 60.0  # from the first attempt of a notice to its last
CLOSE_SECONDS = 5.0  # that the end of a command waits for what is not yet sent
Tell = Callable[..., None]


class Notifier:
    """A thread for each channel, so that a slow one keeps up no other; what a channel gets, it gets in order."""

    def __init__(self, stack: str, channels: Sequence[Channel], tell: Tell) -> None:
        """Start; `tell` is the journal's `record`, and hears of each notice that was given up."""
        self._stack = stack
        self._workers = [_Worker(channel, tell) for channel in channels]

    def take(self, entry: Entry) -> None:
        """Tell of a journal entry, where it is one to tell of; returns at once."""
        if notice := notice_of(entry, self._stack):
            for worker in self._workers:
                worker.put(notice)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for what is not yet sent, all channels together at most so long; what is left then is given up."""
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.close(deadline)


class _Worker:
    """Sends one channel's notices one after the other."""

    def __init__(self, channel: Channel, tell: Tell) -> None:
        self._channel, self._tell = channel, tell
        self._queue: queue.Queue[Notice | None] = queue.Queue()
        self._unsent: list[Notice] = []
        self._lock = threading.Lock()
        # A daemon: the command ends although a receiver does not answer.
        self._thread = threading.Thread(target=self._run, name=f"notify-{channel.name}", daemon=True)
        self._thread.start()

    def put(self, notice: Notice) -> None:
        with self._lock:
            self._unsent.append(notice)
        self._queue.put(notice)

    def close(self, deadline: float) -> None:
        self._queue.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            left, self._unsent = self._unsent, []
        for notice in left:
            self._give_up(notice, "it was not taken before the command ended")

    def _run(self) -> None:
        while (notice := self._queue.get()) is not None:
            reason = self._send(notice)
            with self._lock:
                waited_for = notice in self._unsent
                if waited_for:
                    self._unsent.remove(notice)
            if waited_for and reason:
                self._give_up(notice, reason)

    def _send(self, notice: Notice) -> str | None:
        """Send a notice; return why it was not taken."""
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(RETRY_SECONDS),
            wait=_wait,
            retry=retry_if_exception_type(UnavailableError),
            reraise=True,
        )
        try:
            retrying(self._channel.send, notice)
        except (RefusedError, UnavailableError) as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _give_up(self, notice: Notice, reason: str) -> None:
        self._tell(
            "not-notified", channel=self._channel.name, kind=notice.kind, reason=reason, deployment=notice.deployment
        )


_backoff = wait_exponential_jitter(multiplier=0.5, max=10, jitter=0.5)


def _wait(state: RetryCallState) -> float:
    """Wait as long as the receiver asked for, else twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after_s if isinstance(error, UnavailableError) else None
    return max(asked or 0.0, _backoff(state))
