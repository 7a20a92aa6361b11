"""Telling people and programs of deliveries: Slack, PagerDuty, email and webhooks.

What is told is a `Notice`, made of a journal entry; a `Channel` sends it once; the `Notifier` sends again what failed,
on threads of its own, so that no deployment waits for it or fails by it.
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
