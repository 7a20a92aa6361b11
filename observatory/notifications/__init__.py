"""Notifications of deployments: Slack, PagerDuty, email and webhooks.

`messages` makes a `Notice` from a journal entry, a `Channel` of `channels` sends it once, and the `Notifier` retries in
threads of its own, so that no deployment waits for a receiver or fails because of one.
"""

from observatory.notifications.channels import (
    Channel,
    Email,
    PagerDuty,
    RefusedError,
    Secret,
    Slack,
    UnavailableError,
    Webhook,
)
from observatory.notifications.messages import Kind, Notice, notice_of
from observatory.notifications.notifier import Notifier

__all__ = [
    "Channel",
    "Email",
    "Kind",
    "Notice",
    "Notifier",
    "PagerDuty",
    "RefusedError",
    "Secret",
    "Slack",
    "UnavailableError",
    "Webhook",
    "notice_of",
]
