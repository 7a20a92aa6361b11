"""A runbook page for each alert. `python -m monitoring` writes the pages to docs/runbooks."""

from __future__ import annotations

from collections.abc import Iterable

from monitoring.model import Alert, Scope
from monitoring.registry import ALERTS

_SCOPE = Scope(stack="local", runbooks="")


def runbook_pages() -> dict[str, str]:
    """Return the page of every alert in Markdown, by the name of the alert."""
    return {alert.name: _page(alert) for alert in ALERTS}


def _page(alert: Alert) -> str:
    held = f", held for {alert.pending}" if alert.pending != "0s" else ""
    rollback = " It rolls a moving fleet back." if alert.rollback else ""
    return f"""\
# {alert.name}

{alert.summary}. Severity **{alert.severity}**; component {alert.component}; category {alert.category}.{rollback}

## What it means

{alert.runbook.meaning}

**Impact.** {alert.runbook.impact}

## Look

{_steps(alert.runbook.diagnosis)}

## Act

{_steps(alert.runbook.remedy)}

## The rule

As on the stack `local`{held}:

```
{alert.expression(_SCOPE)}
```

Fault that proves it: {alert.fault}
"""


def _steps(steps: Iterable[str]) -> str:
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
