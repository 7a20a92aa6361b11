"""Dumping a stack's database into a file, for a move to another server or version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.files.atomic import write_once
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.platforms.stack_state import outputs
from observatory.progress import Reporter, silent, task
from observatory.security.age_files import make_key
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.backups.dump_manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A dump: its file, the file's size, what it contains, and the file with the key that decrypts it."""

    file: Path
    bytes: int
    manifest: Manifest
    key_file: Path


def dump_database(workspace: Workspace, file: Path | None = None, *, report: Reporter = silent) -> Dump:
    """Dump the stack's database into a new file of mode 0600, encrypted for the checkout's dump key.

    Args:
        workspace: the stack's.
        file: which must not exist; None: `STACK-TIME.dump` in the working directory.
        report: gets the progress.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        DumpRefusedError: the file exists, or there is too little space; nothing was begun.
        DumpError: it failed; no file is left.
        DatabaseError: the database does not answer.
    """
    from observatory.backups.dump import create_dump  # noqa: PLC0415 - psycopg only where it is used
    from observatory.backups.dump_server import DumpServer  # noqa: PLC0415

    platform = open_platform(workspace)
    check_supported(platform, "backup")
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
    target = (file or Path(f"{workspace.stack}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump")).absolute()
    server = DumpServer(
        sandbox=workspace.sandbox,
        admin=str(outputs(platform)["admin_database_url"]),
        port=platform.settings.ports.postgres,
    )
    with task(report, "dump the database") as step:
        manifest = create_dump(server, platform.settings.database.name, target, key=dump_key(workspace), report=step)
    return Dump(file=target, bytes=target.stat().st_size, manifest=manifest, key_file=dump_key_file(workspace))


def dump_key(workspace: Workspace) -> str:
    """Return the checkout's private key for dumps, which the first dump makes; `down` keeps it."""
    file = dump_key_file(workspace)
    write_once(file, make_key)
    return file.read_text(encoding="utf-8")


def dump_key_file(workspace: Workspace) -> Path:
    """Return the file of that key."""
    return workspace.directory / "dump-key.txt"
