"""The throwaway PostgreSQL server on which migrations are rehearsed, from the local root filesystem."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.runtime import bubblewrap, home_owners

if TYPE_CHECKING:
    from observatory.database import Throwaway

PROGRAMS = "/usr/lib/postgresql/17/bin"  # in the root filesystem
DIRECTORY = "/srv"  # the path of the server's directory in the sandbox


def rehearsal_server(rootfs: Path) -> Throwaway:
    """Return what starts throwaway servers in a root filesystem; their data is kept beside it."""
    return database.Throwaway(
        installation=installation(rootfs),
        templates=database.Templates(directory=rootfs.parent / "rehearsals"),
        dump=partial(_dump_command, rootfs),
    )


def _dump_command(rootfs: Path, arguments: Sequence[str]) -> Sequence[str]:
    """Return the command of `pg_dump` outside of the sandbox: with this user's sockets, certificates and passwords."""
    programs = Path(os.path.realpath(rootfs))
    library = next(programs.glob("usr/lib/*-linux-gnu"))
    loader = next(library.glob("ld-linux-*"))
    return [str(loader), "--library-path", str(library), f"{programs}{PROGRAMS}/pg_dump", *arguments]


def installation(rootfs: Path) -> database.Installation:
    """Return PostgreSQL's programs in a root filesystem, each run in a sandbox over the server's directory."""

    def wrap(command: Sequence[str], directory: Path) -> Sequence[str]:
        mounts = ("--die-with-parent", "--bind", str(directory), DIRECTORY)
        return bubblewrap.command(rootfs, bubblewrap.entry(rootfs, directory), command, mounts=mounts)

    return database.Installation(programs=PROGRAMS, wrap=wrap, inside=DIRECTORY, adopt=home_owners.adopt, root=rootfs)
