"""The journal of deliveries with whoever is told of it: notifications, by the stack's settings, and the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from observatory.documents.journal import FileJournal
from observatory.nodes.alertmanager import receiver_url
from observatory.notifications import Channel, Email, Notifier, PagerDuty, Secret, Slack, Webhook
from observatory.operations.audit import audit
from observatory.operations.environments import administrator
from observatory.operations.state import outputs
from observatory.progress import Reporter, silent
from observatory.settings import EmailNotices, StackSettings, load_file
from observatory.workspace import Workspace


@contextmanager
def open_journal(
    workspace: Workspace,
    settings: StackSettings,
    report: Reporter,
    *,
    conninfo: Callable[[], str] | None = None,
) -> Iterator[FileJournal]:
    """Give the journal; the end waits a few seconds for notices that are not yet sent, and copies it to the audit.

    Args:
        workspace: the stack's.
        settings: its.
        report: is told of every entry.
        conninfo: says how the superuser reaches the database, for the audit's table; without it the next command adds.
    """
    journal = FileJournal(workspace.journal, report)
    notifier = Notifier(workspace.stack, list(channels(settings, workspace.root)), journal.record)
    journal.listeners.append(notifier.take)
    try:
        yield journal
    finally:
        audit(workspace, journal, conninfo)
        notifier.close()


def take_down(workspace: Workspace, event: str, **details: Any) -> None:
    """Put one event that is no deployment's into the journal and the audit."""
    settings, known = load_file(workspace.config_file), outputs(workspace)
    with open_journal(workspace, settings, silent, conninfo=lambda: administrator(settings, known)) as journal:
        journal.record(event, **details)


def channels(settings: StackSettings, root: Path) -> Iterator[Channel]:
    """Yield whom a stack tells; on `local` its receiver stands for Slack, PagerDuty and webhook."""
    wanted = settings.notifications
    here = f"{receiver_url(settings)}/receivers/delivery" if settings.platform == "local" else None
    if wanted.slack:
        yield Slack(Secret(file=root / wanted.slack.webhook_file))
    elif here:
        yield Slack(Secret(plain=f"{here}-slack"))
    if wanted.pagerduty:
        yield PagerDuty(Secret(file=root / wanted.pagerduty.routing_key_file), wanted.pagerduty.url)
    elif here:
        yield PagerDuty(Secret(plain="local"), f"{here}-pagerduty")
    if wanted.webhook:
        yield Webhook(Secret(file=root / wanted.webhook.url_file))
    elif here:
        yield Webhook(Secret(plain=f"{here}-webhook"))
    if wanted.email:
        yield _email(wanted.email, root)


def _email(wanted: EmailNotices, root: Path) -> Email:
    host, _, port = wanted.smarthost.rpartition(":")
    return Email(
        to=wanted.to,
        sender=wanted.sender,
        host=host,
        port=int(port),
        username=wanted.username,
        password=Secret(file=root / wanted.password_file if wanted.password_file else None),
        require_tls=wanted.require_tls,
    )
