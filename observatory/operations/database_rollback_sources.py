"""What a rollback of the database restores: a state that the WAL leads to, or the rows of a dump."""

from __future__ import annotations

from pathlib import Path

from psycopg import sql

from observatory.backups.dump_manifest import DumpRefusedError, Manifest
from observatory.backups.dump_restore import read_manifest, restore_dump
from observatory.backups.dump_server import DumpServer
from observatory.backups.restored import RestoredInstance
from observatory.backups.rollback.swap import LIVE, Swap
from observatory.backups.rollback.timelines import DataDirectory
from observatory.database import read_migrations
from observatory.operations.backup_dump import dump_key, dump_key_file
from observatory.platforms.platform import Platform
from observatory.progress import Reporter, task
from observatory.security.age_files import EncryptedFileError


def promote(swap: Swap, instance: RestoredInstance) -> int:
    """Promote a restored instance to a timeline that no repository has; return the live server's.

    Raises:
        DatabaseRollbackError: the history of its timeline is missing.
        RestoreError: the server ends instead.
    """
    live, origin = swap.directory(LIVE), instance.cover.timeline
    newest = live.control().timeline
    restored = DataDirectory(swap.sandbox, instance.directory.data)
    restored.take_history(origin, live)
    with restored.holding_timelines(origin, newest):
        instance.promote()
    return newest


def check_dump(platform: Platform, dump: Path) -> None:
    """Check that a dump is complete, is for this checkout's key, and has no newer schema.

    Raises:
        EncryptedFileError, DumpRefusedError: it is not, or the checkout has no key.
    """
    key = dump_key_file(platform.workspace)
    if not key.exists():
        raise DumpRefusedError(
            f"{dump} cannot be decrypted: {key} does not exist; nothing was changed",
            remedy=f"Copy the dump-key.txt of the checkout that made the dump to {key}.",
        )
    try:
        manifest = read_manifest(dump, dump_key(platform.workspace))
    except EncryptedFileError as error:
        raise EncryptedFileError(
            str(error.args[0]),
            remedy=f"{error.remedy} The key is {key}: for a dump of another checkout, put that one's in its place.",
        ) from None
    manifest.check_schema(_known(platform))


def fill_from_dump(platform: Platform, instance: RestoredInstance, dump: Path, report: Reporter) -> Manifest:
    """Replace the database of a promoted instance by the rows of a dump, which are compared with its counts.

    Returns:
        What the dump contains; its jobs of pg_cron are not scheduled.

    Raises:
        DumpError: it cannot be restored there.
    """
    workspace, name = platform.workspace, platform.settings.database.name
    server = DumpServer(
        sandbox=workspace.sandbox,
        admin=instance.conninfo(),
        socket=f"{instance.directory.inside}/run",
        port=instance.port,
    )
    with instance.connect() as connection:
        # It has none where the live one was dropped.
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    with task(report, f"restore {dump.name}") as step:
        return restore_dump(
            dump, into=server, database=name, key=dump_key(workspace), known=_known(platform), report=step
        )


def _known(platform: Platform) -> list[int]:
    return [each.version for each in read_migrations(platform.workspace.migrations)]
