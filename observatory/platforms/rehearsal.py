"""The throwaway PostgreSQL server on which migrations are rehearsed, from the local root filesystem."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.files import ownership
from observatory.runtime import bubblewrap

if TYPE_CHECKING:
    from observatory.database import Edition, Throwaway

PROGRAMS = "/usr/lib/postgresql/17/bin"  # in the root filesystem
DIRECTORY = "/srv"  # the path of the server's directory in the sandbox


def rehearsal_server(rootfs: Path) -> Throwaway:
    """Return the factory of throwaway servers that run in a root filesystem."""

    def wrap(command: Sequence[str], directory: Path) -> Sequence[str]:
        mounts = ("--die-with-parent", "--bind", str(directory), DIRECTORY)
        return bubblewrap.command(rootfs, bubblewrap.entry(rootfs), command, mounts=mounts)

    installation = database.Installation(
        programs=PROGRAMS,
        wrap=wrap,
        inside=DIRECTORY,
        adopt=lambda directory: ownership.change_owner(directory, bubblewrap.entry(rootfs).owner),
    )

    def start(edition: Edition) -> AbstractContextManager[str]:
        return database.throwaway_server(installation, edition=edition)

    return start
