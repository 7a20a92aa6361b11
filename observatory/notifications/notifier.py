"""Sends notices in the background with retries, and records in the journal which were not delivered."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

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
WHOLE_ATTEMPT_SECONDS = 20.0  # for all steps of one attempt; a receiver that trickles is given up
CLOSE_SECONDS = 5.0  # that a command waits at its end for notices that are not sent yet
Record = Callable[..., None]


class Notifier:
    """Sends notices on one thread for each channel: in order, and without waiting for other channels."""

    def __init__(self, stack: str, channels: Sequence[Channel], record: Record) -> None:
        """Start the threads; `record` is the journal's, and gets an event for each notice that was not delivered."""
        self._stack = stack
        self._workers = [_Worker(channel, record) for channel in channels]

    def take(self, entry: Entry) -> None:
        """Queue the notice of a journal entry, if its event sends one; return at once."""
        if notice := notice_of(entry, self._stack):
            self.send(notice)

    def send(self, notice: Notice) -> None:
        """Queue a notice for every channel; return at once."""
        for worker in self._workers:
            worker.put(notice)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for all channels to send their notices, for at most `seconds`; the rest is recorded as not delivered."""
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.close(deadline)


class _Worker:
    """Sends one channel's notices, one after the other."""

    def __init__(self, channel: Channel, record: Record) -> None:
        self._channel, self._record = channel, record
        self._queue: queue.Queue[Notice | None] = queue.Queue()
        self._unsent: list[Notice] = []
        self._lock = threading.Lock()
        # A daemon thread: the command ends even if a receiver does not respond.
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
            self._give_up(notice, "not delivered before the command ended")

    def _run(self) -> None:
        while (notice := self._queue.get()) is not None:
            reason = self._send(notice)
            # Recorded under the lock: a command that ends now ends this thread, too, and waits for the lock in `close`.
            with self._lock:
                if notice in self._unsent:
                    self._unsent.remove(notice)
                    if reason:
                        self._give_up(notice, reason)

    def _send(self, notice: Notice) -> str | None:
        """Send a notice with retries; return why it was not delivered, None if it was."""
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(RETRY_SECONDS),
            wait=_wait,
            retry=retry_if_exception_type(UnavailableError),
            reraise=True,
        )
        try:
            retrying(self._attempt, notice)
        except (RefusedError, UnavailableError) as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _attempt(self, notice: Notice) -> None:
        """Send a notice once, on a thread that is left alone where a receiver answers without an end."""
        sent: Future[None] = Future()

        def send() -> None:
            try:
                self._channel.send(notice)
                sent.set_result(None)
            except BaseException as error:
                sent.set_exception(error)

        threading.Thread(target=send, name=f"send-{self._channel.name}", daemon=True).start()
        if not wait([sent], WHOLE_ATTEMPT_SECONDS).done:
            raise RefusedError(f"the receiver did not end its answer within {WHOLE_ATTEMPT_SECONDS:.0f} s")
        sent.result()

    def _give_up(self, notice: Notice, reason: str) -> None:
        self._record(
            "not-notified", channel=self._channel.name, kind=notice.kind, reason=reason, deployment=notice.deployment
        )


_backoff = wait_exponential_jitter(multiplier=0.5, max=10, jitter=0.5)


def _wait(state: RetryCallState) -> float:
    """Return the seconds before the next attempt: the receiver's `Retry-After`, and at least the backoff."""
    error = state.outcome.exception() if state.outcome else None
    retry_after = error.after_s if isinstance(error, UnavailableError) else None
    return max(retry_after or 0.0, _backoff(state))
