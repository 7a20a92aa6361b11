"""The journal of deliveries with its listeners: notifications by the stack's settings, and the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from observatory.documents.journal import FileJournal
from observatory.errors import ObservatoryError
from observatory.notifications import Notifier
from observatory.operations.audit import AuditCopier, audit
from observatory.platforms import open_platform
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import outputs
from observatory.progress import Reporter, silent
from observatory.workspace import Workspace


@contextmanager
def open_journal(
    platform: Platform, report: Reporter, *, conninfo: Callable[[], str] | None = None
) -> Iterator[FileJournal]:
    """Yield the journal. Entries are copied to the audit table as they are written.

    At the end wait a few seconds for unsent notifications, and copy what the audit lacks.

    Args:
        platform: of the stack.
        report: receives every entry.
        conninfo: returns the superuser's connection string, for the audit table; without it a later command copies the
            entries.
    """
    workspace = platform.workspace
    journal = FileJournal(workspace.journal, report)
    notifier = Notifier(workspace.stack, list(platform.channels()), journal.record)
    journal.listeners.append(notifier.take)
    copier = AuditCopier(conninfo) if conninfo else None
    if copier:
        journal.listeners.append(copier.take)
    try:
        yield journal
    finally:
        if copier:
            copier.close()
        audit(platform, journal, conninfo)
        notifier.close()


def record_event(workspace: Workspace, event: str, **details: Any) -> None:
    """Record one event that is not part of a deployment in the journal and the audit."""
    platform = open_platform(workspace)
    current = outputs(platform)
    with open_journal(platform, silent, conninfo=lambda: platform.administrator(current)) as journal:
        journal.record(event, **details)


@contextmanager
def audited(workspace: Workspace, what: str, **details: Any) -> Iterator[None]:
    """Record that something starts, before the block changes anything, and that it failed or was interrupted.

    The caller records its success, with what is known then. A killed process leaves the first entry.
    """
    with audited_once_begun(workspace, what, **details) as begin:
        begin()
        yield


@contextmanager
def audited_once_begun(workspace: Workspace, what: str, **details: Any) -> Iterator[Callable[[], None]]:
    """As `audited`; the start is recorded at the first call of the function, so never where there is nothing to do."""
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            record_event(workspace, f"{what}-started", **details)
        begun = True

    try:
        yield begin
    except BaseException as error:
        reason = str(error) if isinstance(error, ObservatoryError) else type(error).__name__
        record_event(workspace, f"{what}-failed", reason=reason, **details)
        raise
