"""Directories for restored databases, beside the live data, and the end of those that killed commands leave.

A directory belongs to the command that holds its lock, which the kernel releases when the command ends, however it
ends. A clone that shall outlive its command has a mark, and counts as long as one of its processes runs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.backups.tool import BackupError
from observatory.files.locks import FileLockHeldError, claim
from observatory.nodes import Paths
from observatory.runtime import Sandbox, bubblewrap
from observatory.runtime import mounts as outside_directories
from observatory.waiting import wait_until

PARENT = f"{Paths().data}/restore"
LIVE = f"{Paths().data}/postgres"
SEEN_AS = "/run/restored"  # where the processes of a directory, and no others, see it
PREFIX, LOCK = "restored-", ".lock"  # of the names of their lock files
KILLED_S = 60  # until the kernel of a busy machine has ended a killed process


@dataclass(frozen=True)
class ScratchDirectory:
    """The directory `name` of the stack in `sandbox`, for one restored database."""

    sandbox: Sandbox
    name: str

    @property
    def inside(self) -> str:
        """Its path in the stack's sandbox."""
        return f"{PARENT}/{self.name}"

    @property
    def host(self) -> Path:
        """Its path on the host."""
        return self.sandbox.host_path(self.inside)

    @property
    def data(self) -> str:
        """The path of PostgreSQL's data directory in the stack's sandbox."""
        return f"{self.inside}/postgres"

    @property
    def link(self) -> Path:
        """A short path that may lead to it: a symbolic link, which is removed with it."""
        return Path(tempfile.gettempdir()) / f"observatory-{self.name}"

    @property
    def is_kept(self) -> bool:
        """Whether it outlives the command that created it."""
        return self._mark.exists()

    def keep(self) -> None:
        """Let it outlive its command: it stays as long as one of its processes runs."""
        self._mark.touch(mode=0o600)

    def sandboxed(self, argv: Sequence[str], *, attached: bool = True) -> list[str]:
        """Return the command line that runs a program in a sandbox without a network, which writes only here.

        It sees the stack's files and backup repositories, but neither the live data nor a socket of a daemon.

        Args:
            argv: the command line in the sandbox.
            attached: the program is killed when this process ends.
        """
        sandbox = self.sandbox
        hidden = [each for each in (LIVE, Paths().run) if sandbox.host_path(each).is_dir()]
        mounts = [
            *("--unshare-net", "--tmpfs", "/run", "--ro-bind", str(sandbox.home), "/srv"),
            *outside_directories.options(outside_directories.recorded(sandbox.home), writable=False),
            *(word for each in hidden for word in ("--perms", "1777", "--tmpfs", each)),
            *("--bind", str(self.host), self.inside, "--bind", str(self.host), SEEN_AS, "--chdir", "/srv"),
            *((bubblewrap.WITH_PARENT,) if attached else ()),
        ]
        return bubblewrap.command(sandbox.rootfs, sandbox.entry, argv, mounts=mounts)

    def processes(self) -> list[int]:
        """Return the ids of the processes that see this directory as theirs."""
        import psutil  # noqa: PLC0415 - only where a database is restored

        try:
            own = self.host.stat()
        except FileNotFoundError:
            return []
        return [pid for pid in psutil.pids() if _sees(pid, own)]

    def end_processes(self) -> None:
        """End its processes at once.

        Raises:
            BackupError: one does not end.
        """
        if not wait_until(self._kill, KILLED_S):
            raise BackupError(f"processes {self.processes()} in {self.host} do not end after SIGKILL")

    def clear(self) -> None:
        """End its processes and remove what is in it.

        Raises:
            BackupError: a process does not end.
        """
        self.end_processes()
        self.sandbox.remove_file(self.inside)
        self.sandbox.make_directory(self.inside)

    def remove(self) -> None:
        """End its processes and remove it.

        Raises:
            BackupError: a process does not end.
        """
        self.end_processes()
        if self.link.is_symlink() and self.link.readlink().is_relative_to(self.host.absolute()):
            self.link.unlink(missing_ok=True)
        self.sandbox.remove_file(self.inside)
        self._mark.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)

    def _kill(self) -> bool:
        found = self.processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    @property
    def _lock(self) -> Path:
        return self.sandbox.home / "lock" / f"{PREFIX}{self.name}{LOCK}"

    @property
    def _mark(self) -> Path:
        return self._lock.with_suffix(".kept")


@contextlib.contextmanager
def scratch_directory(sandbox: Sandbox, kind: str) -> Iterator[ScratchDirectory]:
    """Create a directory inside the block, and remove it afterwards unless it is kept.

    Args:
        sandbox: of the stack.
        kind: what it is for, as the first part of its name.
    """
    remove_abandoned(sandbox)
    directory = ScratchDirectory(sandbox, f"{kind}-{secrets.token_hex(4)}")
    sandbox.make_home()
    with claim(directory._lock):  # noqa: SLF001 - of this module
        sandbox.make_directory(directory.inside)
        try:
            yield directory
        finally:
            if not directory.is_kept:
                directory.remove()


def scratch_directories(sandbox: Sandbox) -> list[ScratchDirectory]:
    """Return all directories of the stack, in use or abandoned."""
    names = {each.name for each in sandbox.host_path(PARENT).glob("*/")}
    locks = (sandbox.home / "lock").glob(f"{PREFIX}*{LOCK}")  # a killed command may leave no more than that
    names |= {each.name.removeprefix(PREFIX).removesuffix(LOCK) for each in locks}
    return [ScratchDirectory(sandbox, each) for each in sorted(names)]


def remove_abandoned(sandbox: Sandbox) -> list[str]:
    """Remove the directories of ended commands, with their processes, and of ended clones; return their names."""
    removed = []
    for directory in scratch_directories(sandbox):
        with contextlib.suppress(FileLockHeldError), claim(directory._lock):  # noqa: SLF001 - of this module
            if not (directory.is_kept and directory.processes()):
                directory.remove()
                removed.append(directory.name)
    return removed


def _sees(pid: int, directory: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(f"/proc/{pid}/root{SEEN_AS}").stat(), directory)
    except OSError:  # it has ended, sees no such directory, or is another user's
        return False
