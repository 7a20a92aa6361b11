"""Restore drills: proof that a stack's backups can be restored exactly, with a signed receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from observatory.files.atomic import write_once
from observatory.nodes.host_jobs import RESTORE_DRILL
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.progress import Reporter, silent
from observatory.scheduling.records import RecordStore
from observatory.security.signatures import make_private_key
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.backups.receipts import Receipt, ReceiptStore

LATEST = "latest"


def drill_restore(
    workspace: Workspace, *, at: str = LATEST, repository: int | None = None, report: Reporter = silent
) -> Receipt:
    """Restore a backup into a scratch instance, prove that its data is exact, and return the signed receipt.

    The live database is not touched. The receipt is kept in the stack's home, and counts for the setting
    `backups.require_drill_days`.

    Args:
        workspace: the stack's.
        at: `latest`, or a time in ISO 8601 with its time zone.
        repository: number of the repository; None: the one whose last drill is the oldest.
        report: gets progress.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        InvalidTargetError: `at` is no time with a time zone.
        UncoveredTargetError: no backup leads to the time.
        DrillRefusedError: no recorded values could be compared.
        NotEnoughSpaceError: the disk is too small.
    """
    from observatory.backups.drill import Drill  # noqa: PLC0415 - psycopg only where it is used
    from observatory.backups.target import RecoveryTarget  # noqa: PLC0415

    target = RecoveryTarget.parse(at)
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.home.is_dir():
        raise StackNotUpError(workspace.stack)
    write_once(workspace.signing_key_file, make_private_key)
    store = _store(workspace)
    try:
        return Drill(store=store, stack=workspace.stack, target=target, repository=repository, report=report).run()
    finally:
        publish_receipts(workspace)


def list_receipts(workspace: Workspace) -> list[Receipt]:
    """Return the stack's receipts that its checkout's key signed, oldest first."""
    return [each for each in _store(workspace).all() if each.stack == workspace.stack]


def publish_receipts(workspace: Workspace) -> None:
    """Write the metrics of the stack's drills."""
    from observatory.backups.receipts import publish_drills  # noqa: PLC0415 - pydantic models only where they are used

    since = RecordStore(sandbox=workspace.sandbox).read(RESTORE_DRILL).known_since
    publish_drills(_store(workspace), stack=workspace.stack, expected_since=since)


def _store(workspace: Workspace) -> ReceiptStore:
    from observatory.backups.receipts import ReceiptStore  # noqa: PLC0415

    return ReceiptStore(sandbox=workspace.sandbox, key_file=workspace.signing_key_file)
