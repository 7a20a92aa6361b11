"""What an alert is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from monitoring.jobs import Platform

Severity = Literal["critical", "warning", "info", "none"]
Component = Literal["database", "service", "monitoring"]
Category = Literal["availability", "performance", "monitoring"]
_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The stack that rules are made for, the address of its runbooks, and its platform.

    One Prometheus may hold several stacks, so every selector names its own.
    """

    stack: str
    runbooks: str
    platform: Platform = "local"

    def select(self, metric: str, *matchers: str) -> str:
        """Return a selector of the stack's series of a metric, such as `up{stack="local",job="node"}`."""
        wanted = ",".join((f'stack="{self.stack}"', *matchers))
        return f"{metric}{{{wanted}}}"


@dataclass(frozen=True, kw_only=True)
class Firing:
    """An alert expected in a scenario: after `at` (such as `1m`), its labels beyond the rule's own, its description."""

    at: str
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Made-up series (in promtool's notation, a value each `interval`), when the alert fires on them and when not."""

    name: str
    interval: str = "5s"  # what Prometheus scrapes and evaluates with
    series: Mapping[str, str]
    fires: tuple[Firing, ...] = ()
    quiet: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Runbook:
    """What whoever is paged needs: what it means, whom it hurts, where to look, what to do. Steps are Markdown."""

    meaning: str
    impact: str
    diagnosis: tuple[str, ...]
    remedy: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert.

    Attributes:
        name: also the name of its runbook's file.
        expression: PromQL, made for a stack.
        pending: how long the expression must hold before the alert fires (`for`).
        keep_firing: how long it goes on firing after the expression ended (`keep_firing_for`).
        severity: decides the route.
        component: what is broken.
        category: the group of the rule file.
        summary: one sentence without templates.
        description: a Prometheus template that says what was measured.
        runbook: the page's content.
        fault: what proves it on a live stack.
        scenarios: what proves its rule.
        rollback: whether it rolls a moving fleet back.
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
                f"alert {self.name!r}: use CamelCase, as its runbook's file and address have the same name"
            )
        if not any(scenario.fires for scenario in self.scenarios):
            raise ValueError(
                f"alert {self.name}: no scenario in which it fires; an alert that cannot fire protects nobody"
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
        """Return the rule's annotations; `description` is the template's expansion where that is wanted."""
        return {
            "summary": self.summary,
            "description": description or self.description,
            "runbook_url": f"{scope.runbooks}/{self.name}",
        }
