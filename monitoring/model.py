"""The model of an alert: its rule, runbook and test scenarios."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from monitoring.scrape_jobs import Job, Platform, jobs_of
from monitoring.thresholds import Thresholds

Severity = Literal["critical", "warning", "info", "none"]
Component = Literal["database", "service", "cache", "monitoring"]
Category = Literal[
    "availability",
    "connection-pool",
    "query-performance",
    "application-performance",
    "database-resources",
    "cache",
    "data-integrity",
    "timescaledb",
    "backup-and-recovery",
    "capacity",
    "security",
    "platform",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)
Dashboard = Literal["overview", "database", "timescaledb", "delivery", "backups", "service"]
DASHBOARDS: Mapping[Category, Dashboard] = {
    "availability": "overview",
    "connection-pool": "database",
    "query-performance": "database",
    "application-performance": "service",
    "database-resources": "database",
    "cache": "service",
    "data-integrity": "database",
    "timescaledb": "timescaledb",
    "backup-and-recovery": "backups",
    "capacity": "database",
    "security": "database",
    "platform": "overview",
}
UID_LENGTH = 40  # of an identifier in Grafana
_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_OWN_LABELS = ("severity", "component", "category", "stack")
_PLAIN = re.compile(r"[\w.:/@%+=,-]+")


def dashboard_uid(dashboard: str, *, stack: str | None = None) -> str:
    """Return the identifier of a dashboard, the last part of its address in Grafana and in the console.

    The stacks of a cluster share a Grafana, where the identifier has the name of the stack. Grafana allows 40
    characters; the end of a longer identifier is replaced by a digest.
    """
    whole = f"storage-{dashboard}" if stack is None else f"storage-{dashboard}-{stack}"
    if len(whole) <= UID_LENGTH:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: UID_LENGTH - 9]}-{digest}"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The stack of a rule file, the base addresses of its runbooks and dashboards, its platform, and its scrape jobs.

    One Prometheus can scrape several stacks, so every selector names its stack. Without `jobs` they are the platform's.
    Without `dashboards` alerts have no link to a dashboard.
    """

    stack: str
    runbooks: str
    dashboards: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    platform: Platform = "local"
    jobs: tuple[Job, ...] = ()

    @property
    def scraped(self) -> tuple[Job, ...]:
        """The scrape jobs, each of which must have targets that answer."""
        return self.jobs or jobs_of(self.platform)

    def select(self, metric: str, *matchers: str) -> str:
        """Return a selector of the stack's series of a metric, e.g. `up{stack="local",job="node"}`."""
        labels = ",".join((f'stack="{self.stack}"', *matchers))
        return f"{metric}{{{labels}}}"


@dataclass(frozen=True, kw_only=True)
class Firing:
    """An expected alert in a scenario: its time `at` (e.g. `1m`), labels beyond those of the rule, and description."""

    at: str
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Input series in promtool's notation, one value per `interval`, and the times when the alert fires or is quiet."""

    name: str
    interval: str = "5s"  # Prometheus' interval of scrapes and evaluations
    series: Mapping[str, str]
    fires: tuple[Firing, ...] = ()
    quiet: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of a runbook: a text in Markdown, and the shell commands that do it.

    The commands run in the directory of the checkout, with `observatory` on the PATH. A placeholder such as `{fleet}`
    is the value of that label of the alert.
    """

    text: str
    commands: tuple[str, ...] = ()

    @property
    def placeholders(self) -> frozenset[str]:
        """The labels that the commands need."""
        return frozenset(name for command in self.commands for name in _PLACEHOLDER.findall(command))

    def filled(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Return the commands with the values of an alert's labels.

        Raises:
            ValueError: a label is missing, or a shell would not read its value as a plain word.
        """

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name not in labels:
                raise ValueError(f"the alert has no label {name!r}, which a command of its runbook needs")
            if not _PLAIN.fullmatch(labels[name]):
                raise ValueError(f"label {name}={labels[name]!r} is not a plain word: run the command by hand")
            return labels[name]

        return tuple(_PLACEHOLDER.sub(value, command) for command in self.commands)


@dataclass(frozen=True, kw_only=True)
class Runbook:
    """Instructions for the engineer on call. Texts are Markdown.

    Attributes:
        meaning: what the alert says.
        impact: what users notice, now and later.
        diagnosis: how to find the cause; the commands change nothing.
        remedy: how to end the cause; the commands in their order resolve the alert's usual cause.
        escalation: which team continues, and when.
    """

    meaning: str
    impact: str
    diagnosis: tuple[Step, ...]
    remedy: tuple[Step, ...]
    escalation: str


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert.

    Attributes:
        name: name of the alert and of its runbook's file.
        expression: returns the PromQL expression for a stack.
        pending: how long the expression must hold before the alert fires (`for`).
        keep_firing: how long the alert keeps firing after the expression stops holding (`keep_firing_for`).
        severity: severity, which selects the route.
        component: component that has failed.
        category: group in the rule file.
        summary: one sentence without templates.
        description: Prometheus template with the measured value.
        runbook: content of the runbook page.
        fault: fault that triggers the alert on a running stack.
        scenarios: tests of the rule.
        rollback: whether the alert rolls back a running deployment.
        shown_on: dashboard that shows the alert's metrics, if it is not that of the category.
    """

    name: str
    expression: Callable[[Scope], str]
    pending: str = "0s"
    keep_firing: str = "0s"
    severity: Severity
    component: Component
    category: Category
    summary: str
    description: str
    runbook: Runbook
    fault: str
    scenarios: tuple[Scenario, ...]
    rollback: bool = False
    shown_on: Dashboard | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"alert {self.name!r}: expected a name in CamelCase, which is also the name of its runbook's file"
            )
        if not any(scenario.fires for scenario in self.scenarios):
            raise ValueError(
                f"alert {self.name}: no scenario in which it fires; add one to prove that its rule can fire"
            )
        self._check_placeholders()

    def _check_placeholders(self) -> None:
        """Check that the commands of the runbook need only labels that the alert has whenever it fires."""
        labels = [{*firing.labels, *_OWN_LABELS} for scenario in self.scenarios for firing in scenario.fires]
        always = set.intersection(*labels)
        for step in (*self.runbook.diagnosis, *self.runbook.remedy):
            if missing := step.placeholders - always:
                raise ValueError(
                    f"alert {self.name}: a command of its runbook needs the labels {sorted(missing)}, which the alert "
                    "does not always have"
                )

    @property
    def dashboard(self) -> Dashboard:
        """The dashboard that shows the alert's metrics."""
        return self.shown_on or DASHBOARDS[self.category]

    def labels(self, scope: Scope) -> dict[str, str]:
        """Return the labels that the rule adds."""
        rollback = {"rollback": "true"} if self.rollback else {}
        return {
            "severity": self.severity,
            "component": self.component,
            "category": self.category,
            "stack": scope.stack,
            **rollback,
        }

    def annotations(self, scope: Scope, *, description: str | None = None) -> dict[str, str]:
        """Return the rule's annotations; `description` replaces the template with its expansion."""
        uid = dashboard_uid(self.dashboard, stack=scope.stack if scope.platform == "aws" else None)
        dashboard = {"dashboard_url": f"{scope.dashboards}/{uid}"} if scope.dashboards else {}
        return {
            "summary": self.summary,
            "description": description or self.description,
            "runbook_url": f"{scope.runbooks}/{self.name}",
            **dashboard,
        }
