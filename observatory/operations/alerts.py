"""The alerts of a stack as its Prometheus evaluates them, and the values of its metrics over time. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from observatory.operations.stack_monitoring import stack_alertmanager, stack_prometheus
from observatory.platforms.alertmanager import AlertmanagerError
from observatory.platforms.prometheus_client import Series
from observatory.progress import Phase, Progress, Reporter, silent, tell
from observatory.workspace import Workspace

State = Literal["firing", "pending", "inactive"]
RANK: dict[str, int] = {"firing": 0, "pending": 1, "inactive": 2}  # a state that this list lacks comes after them


@dataclass(frozen=True, kw_only=True)
class ActiveAlert:
    """One alert of a rule: what differs from the rule's other alerts.

    Attributes:
        state: `pending` until the rule's condition has held for its time.
        since: when the condition began to hold.
        labels: of the alert.
        description: with the measured value.
        muted: whether a silence, an inhibition or a time interval keeps it from its receivers.
    """

    state: State
    since: datetime
    labels: Mapping[str, str]
    description: str
    muted: bool


@dataclass(frozen=True, kw_only=True)
class AlertRule:
    """One alerting rule, with its alerts; `problem` is why its evaluation failed, or empty."""

    name: str
    severity: str
    component: str
    category: str
    summary: str
    state: State
    alerts: tuple[ActiveAlert, ...]
    problem: str


def list_alerts(workspace: Workspace, *, report: Reporter = silent) -> list[AlertRule]:
    """Return the alerting rules of the stack: firing ones first, then pending ones, then by name.

    If Alertmanager does not answer, no alert counts as muted, and `report` gets a warning.

    Raises:
        StackNotUpError: the stack is not up.
        MetricsUnavailableError: Prometheus does not answer.
    """
    rules = stack_prometheus(workspace).alerting_rules()
    muted: list[Mapping[str, str]] = []
    if any(rule["alerts"] for rule in rules):
        try:
            muted = stack_alertmanager(workspace).muted_alerts()
        except AlertmanagerError as error:
            tell(report, Progress(task=f"silences and inhibitions are not shown: {error}", phase=Phase.WARNED))
    found = [_rule(rule, muted) for rule in rules]
    return sorted(found, key=lambda rule: (RANK.get(rule.state, len(RANK)), rule.name))


def query_metrics(workspace: Workspace, expression: str, *, start: float, end: float, step: float) -> list[Series]:
    """Return the result of a PromQL expression over a time, as Prometheus' API has it.

    Args:
        workspace: of the stack.
        expression: to evaluate.
        start: in seconds since the epoch.
        end: the same.
        step: seconds between two values.

    Raises:
        StackNotUpError: the stack is not up.
        QueryRefusedError: Prometheus answers, and has no result.
        MetricsUnavailableError: Prometheus does not answer.
    """
    return stack_prometheus(workspace).query_range(expression, start=start, end=end, step=step)


def _rule(given: Mapping[str, Any], muted: list[Mapping[str, str]]) -> AlertRule:
    labels = given["labels"]
    return AlertRule(
        name=given["name"],
        severity=labels.get("severity", "none"),
        component=labels.get("component", ""),
        category=labels.get("category", ""),
        summary=given["annotations"].get("summary", ""),
        state=given["state"],
        alerts=tuple(_alert(each, muted) for each in given["alerts"]),
        problem=given.get("lastError", ""),
    )


def _alert(given: Mapping[str, Any], muted: list[Mapping[str, str]]) -> ActiveAlert:
    labels = given["labels"]
    return ActiveAlert(
        state=given["state"],
        since=datetime.fromisoformat(given["activeAt"]),
        labels=labels,
        description=given["annotations"].get("description", ""),
        # Prometheus sends its external labels, too.
        muted=any(labels.items() <= each.items() for each in muted),
    )
