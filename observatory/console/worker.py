"""The child process of the console that reads the stack and renders pages.

The server's side is `Worker`; the child runs `python -m observatory.console.worker DESCRIPTOR ROOT STACK`. They
exchange pickled tuples over a pair of sockets. The child ends when its end of the pair closes, so it never outlives the
server.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from observatory.errors import ObservatoryError

ANSWER_SECONDS = 60.0  # for one page; a restarting database delays one by several seconds
IDLE_SECONDS = 60.0  # without a request, after which the child ends


class WorkerError(ObservatoryError):
    """The child has ended or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer to a request: the status, the type of the content, and the content."""

    status: int
    kind: str
    body: bytes


class Worker:
    """Starts the child when it is needed, passes requests to it one by one, and ends it when it is not."""

    def __init__(self, root: Path, stack: str) -> None:
        self._root, self._stack = root, stack
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._used = 0.0
        self._closed = False

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """Return the child's answer.

        Raises:
            WorkerError: it has ended or takes too long; the next request starts another.
        """
        with self._lock:
            if self._closed:
                raise WorkerError("the console ends")
            try:
                connection = self._running()
                connection.send((path, dict(query)))
                answered = connection.poll(ANSWER_SECONDS)
                answer: tuple[int, str, bytes] = connection.recv() if answered else (0, "", b"")
            except (OSError, EOFError) as error:
                self._end()
                raise WorkerError("the process that reads the stack has ended") from error
            if not answered:
                self._end()
                raise WorkerError(f"reading the stack takes longer than {ANSWER_SECONDS:.0f} s")
            self._used = time.monotonic()
            status, kind, body = answer
            return Answer(status=status, kind=kind, body=body)

    def end_if_idle(self) -> None:
        """End the child if it has had no request for `IDLE_SECONDS`; one that is working is left alone."""
        if self._lock.acquire(blocking=False):
            try:
                if self._process and time.monotonic() - self._used > IDLE_SECONDS:
                    self._end()
            finally:
                self._lock.release()

    def close(self) -> None:
        """End the child, also one that is working; requests that wait for it fail."""
        self._closed = True
        if process := self._process:
            process.kill()
        with self._lock:
            self._end()

    def _running(self) -> Connection:
        if self._connection is None:
            ours, theirs = socket.socketpair()
            with theirs:
                arguments = (str(theirs.fileno()), str(self._root), self._stack)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, *arguments],
                    cwd=self._root,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            self._connection = Connection(ours.detach())
        return self._connection

    def _end(self) -> None:
        if self._connection:
            self._connection.close()
        if self._process:
            self._process.kill()  # it has nothing to finish
            self._process.wait()
        self._process = self._connection = None


def main(arguments: list[str]) -> None:
    """Answer the server's requests until it closes the connection."""
    from observatory.console.pages import Pages  # noqa: PLC0415 - only in the child
    from observatory.operations import open_workspace  # noqa: PLC0415

    descriptor, root, stack = arguments
    pages = Pages(open_workspace(stack, Path(root)))
    with Connection(int(descriptor)) as connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            path, query = connection.recv()
            connection.send(pages.answer(path, query))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
