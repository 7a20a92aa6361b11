"""Programs and daemons of the root filesystem over a directory of a test's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from observatory.files.ownership import change_tree_owner
from observatory.nodes import Unit
from observatory.runtime import Probe, Program, Sandbox, bubblewrap, home_owners, sandbox_user
from tests.support.waiting import PATIENCE_S


def sandboxed(
    rootfs: Path, directory: Path, argv: Sequence[str], *, read_only: bool = True, files: Sequence[Path] = ()
) -> list[str]:
    """Return the command that runs `argv` over a directory, which it sees as /srv, as the user of a sandbox.

    All that is in the directory, and the further `files` under their own paths, can be read there.
    """
    if sandbox_user.recorded(directory) is None:
        home_owners.adopt(directory)
    entry = bubblewrap.entry(rootfs, directory)
    for path in (*directory.iterdir(), *files):
        if path.name != sandbox_user.DIRECTORY:
            change_tree_owner(path, entry.owner)
    parents = dict.fromkeys(parent for path in files for parent in reversed(path.parents[:-1]))
    # bubblewrap makes the directories above a mount private to root.
    mounts = [word for parent in parents for word in ("--perms", "0755", "--dir", str(parent))]
    mounts += [word for path in files for word in ("--ro-bind", str(path), str(path))]
    mounts += ["--die-with-parent", "--ro-bind" if read_only else "--bind", str(directory), "/srv"]
    return bubblewrap.command(rootfs, entry, argv, mounts=mounts)


def start_unit(sandbox: Sandbox, unit: Unit) -> None:
    """Write the files of a unit, start its daemon and wait until it is ready."""
    for directory in unit.directories:
        sandbox.make_directory(directory)
    for path, content in unit.files.items():
        sandbox.write_file(path, content)
    sandbox.supervisor.apply(Program(name=unit.name, command=unit.command))
    probe = Probe(**unit.ready.target(sandbox.host_path))
    sandbox.supervisor.wait_ready(unit.name, probe, timeout=PATIENCE_S)
