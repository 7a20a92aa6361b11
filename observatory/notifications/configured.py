"""The notification channels that a stack's settings configure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from observatory.notifications.channels import Channel, Email, PagerDuty, Secret, Slack, Webhook
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import EmailNotices, StackSettings

ChannelName = Literal["slack", "pagerduty", "webhook", "email"]


def configured_channels(settings: StackSettings, root: Path) -> dict[ChannelName, Channel]:
    """Return the configured channels by name; files of secrets are relative to `root`."""
    configured = settings.notifications
    channels: dict[ChannelName, Channel] = {}
    if configured.slack:
        channels["slack"] = Slack(Secret(file=root / configured.slack.webhook_file))
    if configured.pagerduty:
        key = Secret(file=root / configured.pagerduty.routing_key_file)
        channels["pagerduty"] = PagerDuty(key, configured.pagerduty.url)
    if configured.webhook:
        channels["webhook"] = Webhook(Secret(file=root / configured.webhook.url_file))
    if configured.email:
        channels["email"] = _email(configured.email, root)
    return channels


def receiver_channels(receiver: str, client: ClientCertificate | None) -> dict[ChannelName, Channel]:
    """Return the channels to a stack's own receiver, which replace Slack, PagerDuty and webhook where none is set.

    Args:
        receiver: address of the receiver.
        client: certificate that it requires.
    """
    address = f"{receiver}/receivers/delivery"
    return {
        "slack": Slack(Secret(plain=f"{address}-slack"), client=client),
        "pagerduty": PagerDuty(Secret(plain="local"), f"{address}-pagerduty", client=client),
        "webhook": Webhook(Secret(plain=f"{address}-webhook"), client=client),
    }


def _email(notices: EmailNotices, root: Path) -> Email:
    host, _, port = notices.smarthost.rpartition(":")
    return Email(
        to=notices.to,
        sender=notices.sender,
        host=host,
        port=int(port),
        username=notices.username,
        password=Secret(file=root / notices.password_file if notices.password_file else None),
        require_tls=notices.require_tls,
    )
