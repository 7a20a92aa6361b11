"""Advisory file locks between threads and processes.

A lock is an open file description: it ends with its holder, however that ends, so that nothing stale can remain.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Hold the lock file `path` exclusively, waiting for it; yields its descriptor.

    A child process that inherits the descriptor keeps the lock until it ends too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
