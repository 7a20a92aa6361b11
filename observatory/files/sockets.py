"""Unix sockets below long paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Yield a short alias of `directory`, valid in this process until the end of the block.

    The kernel limits a unix socket's path to 107 bytes, and a checkout deep in a home directory exceeds that. The alias
    works with everything that opens the socket in this process, such as `psycopg.connect(host=alias)`.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
