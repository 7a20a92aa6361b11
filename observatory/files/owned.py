"""Files that daemons read: written atomically, private by default, owned by the user that the daemons run as.

Also the way around the kernel's limit on the length of a unix socket's path.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from observatory.files.atomic import partial_path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """User and group that files of the sandbox belong to."""

    uid: int
    gid: int


def adopt(path: Path, owner: Owner | None) -> None:
    """Give `path` (not what is below it) to `owner`; None leaves it with the caller."""
    if owner:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def write_file(path: Path, content: str | bytes, *, mode: int = 0o600, owner: Owner | None = None) -> bool:
    """Replace `path` by `content` in one step, whatever the umask; return whether anything changed."""
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.stat().st_mode & 0o7777 == mode and path.read_bytes() == data:
        return False
    temporary = partial_path(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        adopt(temporary, owner)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


@contextlib.contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Yield a short alias of `directory`, valid in this process and while the context lasts.

    A unix socket's path may have 107 bytes; a checkout deep in somebody's home directory exceeds that. Works with
    whatever opens the socket in this process, such as `psycopg.connect(host=alias)`.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
