"""Work on several threads that ends as one: at the first error, and when a signal interrupts the caller.

A thread that waits for a child process or for a statement of PostgreSQL cannot be interrupted. So the code that lets it
wait says how another thread ends what it waits for: `ended_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

POLL_S = 0.1


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the result of `work` for each item, in the order of the items; each item has a thread of its own.

    The first error, or a KeyboardInterrupt, ends the work on the other items, and is raised when it has ended.
    """
    group = _Group()
    running: list[Future[R]] = []

    def work_in_group(item: T) -> R:
        _of_this_thread.set(group)
        return work(item)

    with ThreadPoolExecutor(len(items)) as threads:
        try:
            running.extend(threads.submit(work_in_group, each) for each in items)
            for each in as_completed(running):
                each.result()
        except BaseException:
            group.end(running)
            raise
    return [each.result() for each in running]


@contextmanager
def ended_by(end: Callable[[], object]) -> Iterator[None]:
    """Let `end` be called when the work of this thread is to end before the block has ended.

    Outside of `in_parallel` it is never called.

    Args:
        end: ends what the block waits for. Another thread calls it, perhaps several times.
    """
    if (group := _of_this_thread.get()) is None:
        yield
        return
    with group.ended_by(end):
        yield


class _EndedError(BaseException):
    """The work of this thread is to end; no exception that is handled, for the thread would go on."""


class _Group:
    """The threads of one `in_parallel`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._endings: dict[object, Callable[[], object]] = {}
        self._is_ended = False

    @contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """As the function; a block that would begin after the end is not begun."""
        block = object()
        with self._lock:
            if self._is_ended:
                raise _EndedError
            self._endings[block] = end
        try:
            yield
        finally:
            with self._lock:
                del self._endings[block]

    def end(self, running: Sequence[Future[Any]]) -> None:
        """End what the threads wait for until all have ended: a statement may begin just after it was cancelled."""
        has_ended = False
        while not has_ended:
            with self._lock:
                self._is_ended, endings = True, list(self._endings.values())
            for end in endings:
                end()
            has_ended = not wait(running, POLL_S).not_done


_of_this_thread: ContextVar[_Group | None] = ContextVar("group of this thread", default=None)
