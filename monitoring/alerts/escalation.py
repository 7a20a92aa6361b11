"""Escalation of alerts: the team that continues when the engineer on call does not make progress."""

from __future__ import annotations

DATABASE = (
    "If the remedy does not end the alert within 15 minutes, page the database team and write to `#database-team`. "
    "If data may be lost, page the team at once, and change nothing in the data directory until it agrees."
)
SERVICE = (
    "If the remedy does not end the alert within 15 minutes, page the team of the storage service. "
    "If a deployment runs, its author decides with you whether to roll back."
)
PLATFORM = (
    "If the remedy does not end the alert within 30 minutes, page the platform team. "
    "Until then, watch Prometheus' page `/alerts`, or on a local stack that of `observatory console`: other alerts may "
    "not reach you."
)
SECURITY = (
    "Write to `security@llm-observatory.io` before you change anything, if you cannot explain the cause within 15 "
    "minutes. Keep the logs."
)
TICKET = "None. Create a ticket for the team of the component; it is not urgent."
