"""The journal of deliveries with whoever listens to it: notifications, by the stack's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from observatory.delivery.journal import FileJournal
from observatory.nodes.alertmanager import receiver_url
from observatory.notifications import Channel, Email, Notifier, PagerDuty, Secret, Slack, Webhook
from observatory.progress import Reporter
from observatory.settings import EmailNotices, StackSettings
from observatory.workspace import Workspace


@contextmanager
def open_journal(workspace: Workspace, settings: StackSettings, report: Reporter) -> Iterator[FileJournal]:
    """Give the journal; the end waits a few seconds for notices that are not yet sent."""
    journal = FileJournal(workspace.journal, report)
    notifier = Notifier(workspace.stack, list(channels(settings, workspace.root)), journal.record)
    journal.listeners.append(notifier.take)
    try:
        yield journal
    finally:
        notifier.close()


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
