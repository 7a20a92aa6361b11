"""Prometheus' rule file and promtool's unit tests, generated from the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monitoring.model import CATEGORIES, Alert, Firing, Scenario, Scope
from monitoring.recording import all_recordings
from monitoring.registry import ALERTS
from monitoring.yaml_text import yaml_text

TEST_SCOPE = Scope(stack="test", runbooks="http://runbooks.test", dashboards="http://dashboards.test")


def rule_file(scope: Scope) -> str:
    """Return the rule file of a stack as YAML."""
    return yaml_text(rule_groups(scope))


def rule_groups(scope: Scope) -> dict[str, Any]:
    """Return the content of the rule file: one group of recording rules, and one for each category of alerts."""
    recordings = [{"record": name, "expr": expression} for name, expression in all_recordings(scope).items()]
    groups: list[dict[str, Any]] = [{"name": "storage.recordings", "rules": recordings}]
    for category in CATEGORIES:
        rules = [alert_rule(alert, scope) for alert in ALERTS if alert.category == category]
        groups.extend([{"name": f"storage.{category}", "rules": rules}] if rules else [])
    return {"groups": groups}


def rule_tests() -> tuple[dict[str, str], tuple[str, ...]]:
    """Return promtool's tests of all scenarios: YAML by file name, and the names of the files that hold tests.

    Each alert's scenarios run against a file of its own rule: against all rules they would take minutes. The interval
    of evaluations equals that of the samples, and promtool has one such interval per file.
    """
    files: dict[str, dict[str, Any]] = {}
    for alert in ALERTS:
        files |= alert_tests(alert, [alert_rule(alert, TEST_SCOPE)])
    tests = tuple(name for name in files if not name.endswith(".rules.yaml"))
    return {name: yaml_text(document) for name, document in files.items()}, tests


def alert_tests(alert: Alert, rules: Sequence[dict[str, Any]], *, file: str = "") -> dict[str, dict[str, Any]]:
    """Return the files with an alert's scenarios, and with the rules that they test; all rules must behave alike.

    `file` is the beginning of their names; by default the alert's name.
    """
    names = [rule["alert"] for rule in rules]
    rule_name = f"{file or alert.name}.rules.yaml"
    return {
        rule_name: {"groups": [{"name": alert.name, "rules": list(rules)}]},
        **{
            f"{file or alert.name}.{interval}.yaml": {
                "rule_files": [rule_name],
                "evaluation_interval": interval,
                "tests": [
                    scenario_test(alert, scenario, names=names)
                    for scenario in alert.scenarios
                    if scenario.interval == interval
                ],
            }
            for interval in sorted({scenario.interval for scenario in alert.scenarios})
        },
    }


def alert_rule(alert: Alert, scope: Scope) -> dict[str, Any]:
    """Return an alert's rule in Prometheus' keys."""
    return {
        "alert": alert.name,
        "expr": alert.expression(scope),
        "for": alert.pending,
        "keep_firing_for": alert.keep_firing,
        "labels": alert.labels(scope),
        "annotations": alert.annotations(scope),
    }


def scenario_test(alert: Alert, scenario: Scenario, *, names: Sequence[str]) -> dict[str, Any]:
    """Return promtool's test of a scenario for the rules of these names."""
    expected: dict[str, list[dict[str, Any]]] = {at: [] for at in scenario.quiet}
    for firing in scenario.fires:
        expected.setdefault(firing.at, []).append(_expected(alert, firing))
    return {
        "name": f"{alert.name}: {scenario.name}",
        "interval": scenario.interval,
        "input_series": [{"series": series, "values": values} for series, values in scenario.series.items()],
        "alert_rule_test": [
            {"eval_time": at, "alertname": name, "exp_alerts": alerts}
            for name in names
            for at, alerts in expected.items()
        ],
    }


def _expected(alert: Alert, firing: Firing) -> dict[str, Any]:
    return {
        "exp_labels": {**firing.labels, **alert.labels(TEST_SCOPE)},
        "exp_annotations": alert.annotations(TEST_SCOPE, description=firing.description),
    }
