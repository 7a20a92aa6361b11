"""The index of all alerts, docs/alerts.md. `python -m monitoring` writes it."""

from __future__ import annotations

from monitoring.model import CATEGORIES, Alert, Category, Scope
from monitoring.recording import all_recordings
from monitoring.registry import ALERTS

_SCOPE = Scope(stack="local", runbooks="")
TITLES: dict[Category, str] = {
    "connection-pool": "Connection pool",
    "query-performance": "Query performance",
    "application-performance": "Application performance",
    "database-resources": "Database resources",
    "data-integrity": "Data integrity",
    "timescaledb": "TimescaleDB",
    "backup-and-recovery": "Backup and recovery",
    "platform": "Beside them: backups, certificates, jobs and monitoring itself",
}


def alert_index() -> str:
    """Return the page in Markdown."""
    promised = sum(alert.category != "platform" for alert in ALERTS)
    tables = "\n\n".join(_table(category) for category in CATEGORIES)
    recordings = "\n".join(
        f"| `{name}` | `{' '.join(rule.split())}` |" for name, rule in all_recordings(_SCOPE).items()
    )
    return f"""\
# Alerts

Use this page to find an alert and its runbook. {promised} alerts in eleven categories cover the storage layer, and
{len(ALERTS) - promised} more the platform. [The registry](../monitoring/alerts) generates the rules, their tests,
the runbooks and this page: `python -m monitoring` writes them. Thresholds are [settings](settings.md#alerts).

**critical** pages at once. **warning** is for the next half hour and is escalated after it. **info** is a ticket, sent
while a warning or critical alert fires too. **none** is not about a fault. [alerting.md](alerting.md) has the routes.

*Pending* is how long the condition holds before the alert fires. Alerts with *rollback* roll back a
deployment that moves their fleet.

{tables}

## Recorded series

Ratios and quantiles have no value while there is nothing to measure.

| series | rule |
| --- | --- |
{recordings}
"""


def _table(category: Category) -> str:
    alerts = [alert for alert in ALERTS if alert.category == category]
    rows = "\n".join(_row(alert) for alert in alerts)
    title = TITLES.get(category, category.capitalize())
    return f"""\
## {title} ({len(alerts)})

| alert | severity | pending | rollback | meaning | fault that triggers it |
| --- | --- | --- | --- | --- | --- |
{rows}"""


def _row(alert: Alert) -> str:
    pending = "" if alert.pending == "0s" else alert.pending
    rollback = "yes" if alert.rollback else ""
    cells = (f"[{alert.name}](runbooks/{alert.name}.md)", alert.severity, pending, rollback, alert.summary, alert.fault)
    return f"| {' | '.join(cells)} |"
