"""Prometheus' rule file and promtool's unit tests, generated from the registry."""

from __future__ import annotations

from typing import Any

import yaml

from monitoring.model import CATEGORIES, Alert, Scenario, Scope
from monitoring.recording import recording_rules
from monitoring.registry import ALERTS

TEST_SCOPE = Scope(stack="test", runbooks="http://runbooks.test", dashboards="http://dashboards.test")


def rule_file(scope: Scope) -> str:
    """Return the rule file of a stack as YAML: one group of recording rules, and one for each category of alerts."""
    recordings = [{"record": name, "expr": expression} for name, expression in recording_rules(scope).items()]
    groups = [{"name": "storage.recordings", "rules": recordings}]
    for category in CATEGORIES:
        rules = [_rule(alert, scope) for alert in ALERTS if alert.category == category]
        groups.extend([{"name": f"storage.{category}", "rules": rules}] if rules else [])
    return _yaml({"groups": groups})


def rule_tests(rule_files: tuple[str, ...]) -> dict[str, str]:
    """Return promtool's tests of all scenarios as YAML files, by interval, for the rule file of `TEST_SCOPE`.

    The interval of evaluations equals that of the samples, and promtool has one such interval per file.
    """
    tests = [(alert, scenario) for alert in ALERTS for scenario in alert.scenarios]
    return {
        interval: _yaml(
            {
                "rule_files": list(rule_files),
                "evaluation_interval": interval,
                "tests": [_test(alert, scenario) for alert, scenario in tests if scenario.interval == interval],
            }
        )
        for interval in sorted({scenario.interval for _, scenario in tests})
    }


def _rule(alert: Alert, scope: Scope) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression(scope),
        "for": alert.pending,
        "keep_firing_for": alert.keep_firing,
        "labels": alert.labels(scope),
        "annotations": alert.annotations(scope),
    }


def _test(alert: Alert, scenario: Scenario) -> dict[str, Any]:
    quiet = [{"eval_time": at, "alertname": alert.name, "exp_alerts": []} for at in scenario.quiet]
    fires = [
        {
            "eval_time": firing.at,
            "alertname": alert.name,
            "exp_alerts": [
                {
                    "exp_labels": {**firing.labels, **alert.labels(TEST_SCOPE)},
                    "exp_annotations": alert.annotations(TEST_SCOPE, description=firing.description),
                }
            ],
        }
        for firing in scenario.fires
    ]
    return {
        "name": f"{alert.name}: {scenario.name}",
        "interval": scenario.interval,
        "input_series": [{"series": series, "values": values} for series, values in scenario.series.items()],
        "alert_rule_test": [*quiet, *fires],
    }


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)
