"""A runbook page for each alert. `python -m monitoring` writes the pages to docs/runbooks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from monitoring.model import Alert, Scope, Step
from monitoring.registry import ALERTS

_SCOPE = Scope(stack="local", runbooks="")


def runbook_pages() -> dict[str, str]:
    """Return the page of every alert in Markdown, by the name of the alert."""
    return {alert.name: _page(alert) for alert in ALERTS}


def _page(alert: Alert) -> str:
    pending = f"The alert fires when the expression has held for {alert.pending}.\n\n" if alert.pending != "0s" else ""
    rollback = " It rolls back a running deployment." if alert.rollback else ""
    return f"""\
# {alert.name}

{alert.summary}. Severity **{alert.severity}**; component {alert.component}; category {alert.category}.{rollback}

## Meaning

{alert.runbook.meaning}

## Impact

{alert.runbook.impact}

## Diagnosis

{_steps(alert.runbook.diagnosis)}

## Remedy

{_steps(alert.runbook.remedy)}

## Escalation

{alert.runbook.escalation}

## Rule

Expression on the stack `local`:

```
{alert.expression(_SCOPE)}
```

{pending}Fault that triggers the alert: {alert.fault}
"""


def _steps(steps: Iterable[Step]) -> str:
    return "\n".join(_step(number, step) for number, step in enumerate(steps, start=1))


def _step(number: int, step: Step) -> str:
    """Return a step in Markdown, its commands as a block below the text."""
    text = f"{number}. {step.text}"
    if not step.commands:
        return text
    indent = " " * len(f"{number}. ")
    block = "\n".join(("```sh", *"\n".join(step.commands).splitlines(), "```"))
    return f"{text}\n\n{textwrap.indent(block, indent)}\n"
