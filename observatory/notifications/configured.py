"""The notification channels that a stack's settings configure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from observatory.notifications.channels import Channel, Email, PagerDuty, Secret, Slack, Webhook
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import EmailNotices, LocalSettings, Notifications, StackSettings
from observatory.settings.local import Receivers

ChannelName = Literal["slack", "pagerduty", "webhook", "email"]


def configured_channels(settings: StackSettings, root: Path) -> dict[ChannelName, Channel]:
    """Return the configured channels by name; files of secrets are relative to `root`."""
    channels = _channels(settings.notifications, root)
    if webhook := settings.notifications.webhook:
        channels["webhook"] = Webhook(Secret(file=root / webhook.url_file))
    return channels


def alert_channels(settings: StackSettings, root: Path) -> dict[ChannelName, Channel]:
    """Return the channels to those who receive alerts, by name; files of secrets are relative to `root`.

    On `local` they are Slack, PagerDuty and email of `receivers`, and what is not set there as `configured_channels`.
    """
    channels = configured_channels(settings, root)
    return channels | _channels(settings.receivers, root) if isinstance(settings, LocalSettings) else channels


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


def _channels(configured: Notifications | Receivers, root: Path) -> dict[ChannelName, Channel]:
    channels: dict[ChannelName, Channel] = {}
    if configured.slack:
        channels["slack"] = Slack(Secret(file=root / configured.slack.webhook_file))
    if configured.pagerduty:
        key = Secret(file=root / configured.pagerduty.routing_key_file)
        channels["pagerduty"] = PagerDuty(key, configured.pagerduty.url)
    if configured.email:
        channels["email"] = _email(configured.email, root)
    return channels


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
