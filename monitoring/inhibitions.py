"""The inhibitions: while a known cause fires, alerts on its consequences are not delivered.

Critical alerts are never inhibited: they page, and they start rollbacks. `equal` limits an inhibition to alerts of the
same stack, fleet or file system. Alertmanager compares a label that both alerts lack as equal, and one that only one of
them lacks as different, so `inhibitions` refuses a label that an alert of either side lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from monitoring.alerts.delivery_of_alerts import DROPPED_BY_ESCALATION, WARNING_UNATTENDED
from monitoring.matchers import Matcher, match_all
from monitoring.model import Alert, Scope
from monitoring.registry import ALERTS

_SCOPE = Scope(stack="local", runbooks="")


@dataclass(frozen=True, kw_only=True)
class Inhibition:
    """One inhibition: matchers of the cause and of its consequences, and the labels that both have in common."""

    source: tuple[str, ...]
    targets: tuple[str, ...]
    equal: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the inhibition in Alertmanager's keys."""
        return {
            "source_matchers": list(self.source),
            "target_matchers": list(self.targets),
            "equal": list(self.equal),
        }


# Categories whose warnings a stopped database causes.
NEED_DATABASE = (*("availability", "connection-pool", "query-performance", "application-performance", "timescaledb"),)

INHIBITIONS = (
    Inhibition(
        source=('alertname="StorageDatabaseDown"',),
        targets=(f'category=~"{"|".join(NEED_DATABASE)}"', 'severity=~"warning|info"'),
        equal=("stack",),
    ),
    Inhibition(
        source=('alertname="StorageServiceDown"',),
        targets=('alertname="StorageInstanceDown"',),
        equal=("stack", "fleet"),
    ),
    Inhibition(
        source=('alertname="StorageErrorBudgetFastBurn"',),
        targets=('alertname="StorageErrorBudgetSlowBurn"',),
        equal=("stack", "fleet"),
    ),
    Inhibition(
        source=('alertname="StoragePoolExhausted"',),
        targets=('alertname="StoragePoolSaturated"',),
        equal=("stack", "database", "user"),
    ),
    Inhibition(
        source=('alertname="StorageDiskCritical"',),
        targets=('alertname=~"StorageDiskWarning|StorageDiskFullIn4Days"',),
        equal=("stack", "instance", "mountpoint"),
    ),
    Inhibition(
        source=('alertname="StorageCacheDown"',),
        targets=('alertname=~"StorageCacheMemoryHigh|StorageCacheHitRateLow"',),
        equal=("stack", "instance"),
    ),
    Inhibition(source=('alertname="InfoInhibitor"',), targets=('severity="info"',), equal=("stack",)),
)


def inhibitions(rules: Sequence[Inhibition] = INHIBITIONS, alerts: Sequence[Alert] = ALERTS) -> list[dict[str, Any]]:
    """Return the inhibitions in Alertmanager's keys; each also covers the escalation of the warnings that it inhibits.

    Raises:
        ValueError: a rule names an alert that does not exist, inhibits a critical alert, does not compare
            the stack, or compares a label that one of its alerts lacks.
    """
    return [each.document() for rule in rules for each in _with_escalation(rule, alerts)]


def label_names(alert: Alert) -> frozenset[str]:
    """Return the labels that an alert always has: those of its rule, and those in all scenarios in which it fires.

    promtool compares the labels of a scenario exactly, so they are those of the expression.
    """
    fired = [frozenset(firing.labels) for scenario in alert.scenarios for firing in scenario.fires]
    return frozenset.intersection(*fired) | {"alertname", *alert.labels(_SCOPE)}


def _with_escalation(rule: Inhibition, alerts: Sequence[Alert]) -> Iterator[Inhibition]:
    """Yield a rule and, if it inhibits warnings, the rule for their escalation, which fires in their stead."""
    targets = _checked(rule, alerts)
    yield rule
    if escalated := sorted(alert.name for alert in targets if alert.severity == "warning"):
        matchers = (f'alertname="{WARNING_UNATTENDED.name}"', f'escalated=~"{"|".join(escalated)}"')
        yield Inhibition(source=rule.source, targets=matchers, equal=rule.equal)


def _checked(rule: Inhibition, alerts: Sequence[Alert]) -> list[Alert]:
    """Return the alerts that a rule inhibits, after checking it."""
    sources, targets = list(_matching(rule.source, alerts)), list(_matching(rule.targets, alerts))
    for side, matchers, found in (("cause", rule.source, sources), ("consequence", rule.targets, targets)):
        if not found and any(text.startswith("alertname") for text in matchers):
            raise ValueError(
                f"inhibition by {_text(rule.source)}: no alert is its {side} {_text(matchers)}: correct it"
            )
    if critical := [alert.name for alert in targets if alert.severity == "critical"]:
        raise ValueError(f"inhibition by {_text(rule.source)}: inhibits {critical}, which are critical and must page")
    if "stack" not in rule.equal or DROPPED_BY_ESCALATION & set(rule.equal):
        raise ValueError(
            f"inhibition by {_text(rule.source)}: equal is {list(rule.equal)}; expected stack, and none of "
            f"{sorted(DROPPED_BY_ESCALATION)}"
        )
    for alert in (*sources, *targets):
        if lacking := set(rule.equal) - label_names(alert):
            raise ValueError(
                f"inhibition by {_text(rule.source)}: {alert.name} lacks the label {sorted(lacking)} of equal, so it "
                "would inhibit nothing or everything: use labels that the alerts of both sides have"
            )
    return targets


def _matching(matchers: Iterable[str], alerts: Sequence[Alert]) -> Iterator[Alert]:
    parsed = [Matcher.parse(text) for text in matchers]
    for alert in alerts:
        if match_all(parsed, {"alertname": alert.name, **alert.labels(_SCOPE)}):
            yield alert


def _text(matchers: Iterable[str]) -> str:
    return "{" + ",".join(matchers) + "}"
