"""A server that is dumped or restored into: its superuser's connection, its programs, and unpacked dumps beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.backups.dump_manifest import DumpError, DumpRefusedError
from observatory.backups.scratch import PARENT, scratch_directory
from observatory.backups.space import RESERVE_BYTES
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import BIN
from observatory.runtime import Sandbox

LAST_LINES = 10
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class DumpServer:
    """A server with its programs.

    Attributes:
        sandbox: of the programs. They reach the server by its socket, also where the server has another sandbox.
        admin: connection string of the superuser to the database `postgres`, from the host.
        socket: directory of the server's socket in the sandbox.
        port: of the server.
    """

    sandbox: Sandbox
    admin: str
    socket: str = Paths().postgres_socket
    port: int

    def program(self, name: str, *arguments: str) -> str:
        """Run a client program of PostgreSQL and return its output; an exception such as an interrupt kills it.

        Raises:
            DumpError: it failed.
        """
        address = ("-h", self.socket, "-p", str(self.port), "-U", "postgres")
        done = self.sandbox.run([f"{BIN}/{name}", *address, *arguments], check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
            raise DumpError(f"{name} failed with exit status {done.returncode}:\n{last}")
        return done.stdout

    @property
    def disk(self) -> Path:
        """A directory of the host on the file system of unpacked dumps."""
        self.sandbox.make_directory(PARENT)
        return self.sandbox.host_path(PARENT)

    @property
    def reserve(self) -> tuple[Path, int, str]:
        """What stays free on that file system for the live database, as `check_space` takes it."""
        return self.disk, RESERVE_BYTES, "the live database"

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """Yield a new private directory of the sandbox for an unpacked dump, and remove it at the end of the block.

        The directory of a killed command is removed by the next one.
        """
        with scratch_directory(self.sandbox, "dump") as directory:
            yield directory.inside


def check_space(needs: Sequence[tuple[Path, int, str]]) -> None:
    """Check that directories have space; what several of one file system need is added.

    Args:
        needs: a directory, bytes, and what they are for.

    Raises:
        DumpRefusedError: a file system lacks space.
    """
    by_disk: dict[int, list[tuple[Path, int, str]]] = {}
    for each in needs:
        by_disk.setdefault(each[0].stat().st_dev, []).append(each)
    for found in by_disk.values():
        place, needed, free = found[0][0], sum(size for _, size, _ in found), shutil.disk_usage(found[0][0]).free
        if needed > free:
            purposes = " and ".join(purpose for _, _, purpose in found)
            raise DumpRefusedError(
                f"{place} has {free // MIB} MiB of free space, but {purposes} may need {needed // MIB + 1} MiB",
                remedy="Free that space, and run again.",
            )


def workers() -> int:
    """Return how many processes copy at once: one for each processor, up to 4."""
    return min(os.cpu_count() or 1, 4)
