"""The model of an alert: its rule, runbook and test scenarios."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from monitoring.scrape_jobs import Job, Platform, jobs_of

Severity = Literal["critical", "warning", "info", "none"]
Component = Literal["database", "service", "monitoring"]
Category = Literal["availability", "performance", "resources", "backups", "monitoring"]
_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The stack of a rule file, the base address of its runbooks, its platform, and its scrape jobs.

    One Prometheus can scrape several stacks, so every selector names its stack. Without `jobs` they are the platform's.
    """

    stack: str
    runbooks: str
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


@dataclass(frozen=True, kw_only=True)
class Runbook:
    """Instructions for the engineer on call: meaning, impact, diagnosis and remedy. Steps are Markdown."""

    meaning: str
    impact: str
    diagnosis: tuple[str, ...]
    remedy: tuple[str, ...]


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

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"alert {self.name!r}: expected a name in CamelCase, which is also the name of its runbook's file"
            )
        if not any(scenario.fires for scenario in self.scenarios):
            raise ValueError(
                f"alert {self.name}: no scenario in which it fires; add one to prove that its rule can fire"
            )

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
        return {
            "summary": self.summary,
            "description": description or self.description,
            "runbook_url": f"{scope.runbooks}/{self.name}",
        }
