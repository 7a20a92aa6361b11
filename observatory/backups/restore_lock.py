"""The lock of restores that change the live database: one at a time for each stack.

Restores beside the live data (drills, clones) need it not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from observatory.backups.tool import BackupError
from observatory.errors import REFUSED
from observatory.files.locks import FileLockHeldError, claim, holder
from observatory.runtime import Sandbox


class RestoreRunningError(BackupError):
    """Another restore is running; nothing was changed."""

    exit_code = REFUSED


@contextlib.contextmanager
def restore_lock(sandbox: Sandbox, command: str) -> Iterator[None]:
    """Hold the restore lock of a stack inside the block; the kernel releases it when this process ends.

    Args:
        sandbox: of the stack.
        command: what the lock is for, as messages to others name it.

    Raises:
        RestoreRunningError: another process holds the lock.
    """
    sandbox.make_home()
    lock = sandbox.home / "lock" / "restore.lock"
    purpose = lock.with_suffix(".command")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(claim(lock))
        except FileLockHeldError:
            what = purpose.read_text(encoding="utf-8") if purpose.exists() else "a command"
            raise RestoreRunningError(
                f"another restore of this stack is running: {what}, process {holder(lock) or 'unknown'}",
                remedy="Wait until it has ended, then run the command again.",
            ) from None
        purpose.write_text(command, encoding="utf-8")
        held.callback(purpose.unlink, missing_ok=True)
        yield
