"""Metrics and labels that no endpoint exports are found, with every alert that they make silent."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import promql_parser as promql
import pytest

from monitoring import ALERTS, Alert, Scope
from tests.support.phantoms import UnderFault, phantoms, report

SCOPE = Scope(stack="local", runbooks="")
UP = {"__name__": "pg_up", "stack": "local", "instance": "one"}
WEIGHT = {"__name__": "weight", "stack": "local", "fleet": "blue"}
STATUS = {"__name__": "status", "stack": "local", "fleet": "blue", "state": "UP"}
MATCHES: dict[str, Callable[[str, str], bool]] = {
    "MatchOp.Equal": lambda wanted, value: value == wanted,
    "MatchOp.NotEqual": lambda wanted, value: value != wanted,
    "MatchOp.Re": lambda wanted, value: re.fullmatch(wanted, value) is not None,
    "MatchOp.NotRe": lambda wanted, value: re.fullmatch(wanted, value) is None,
}


@dataclass
class Endpoints:
    """Series in memory, and names of metrics without one."""

    live: list[dict[str, str]] = field(default_factory=lambda: [UP, WEIGHT, STATUS])
    described: set[str] = field(default_factory=set)

    def series(self, selector: str) -> list[dict[str, str]]:
        tree: Any = promql.parse(selector)
        wanted = [(each.name, MATCHES[str(each.op)], each.value) for each in tree.matchers.matchers]
        if tree.name:
            wanted.append(("__name__", MATCHES["MatchOp.Equal"], tree.name))
        return [one for one in self.live if all(fits(value, one.get(name, "")) for name, fits, value in wanted)]

    def describes(self, metric: str) -> bool:
        return metric in self.described

    def contains(self, program: str, words: tuple[str, ...]) -> bool:
        return all(word in program for word in words)


def test_a_renamed_metric_is_named_with_every_alert_that_it_silences() -> None:
    asked = {
        "First": 'last_over_time(pg_up{stack="local"}[1m]) == 0',
        "Second": 'vector(1) unless pg_up{stack="local"}',
        "Third": 'weight{stack="local"} > 0',
    }
    assert phantoms(asked, Endpoints()) == {}
    renamed = Endpoints([{**UP, "__name__": "pg_alive"}, WEIGHT, STATUS])
    assert report(phantoms(asked, renamed)) == 'pg_up{stack="local"} matches no series; silent: First, Second'


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_without_any_series_every_alert_is_silent_but_watchdog(alert: Alert) -> None:
    found = phantoms({alert.name: alert.expression(SCOPE)}, Endpoints([]), under_fault=())
    assert bool(found) is (alert.name != "Watchdog")


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ('weight{stack="local",fleet="red"}', 'weight{stack="local",fleet="red"} matches no series'),
        ('rate(weight{fleet=~"b.*"}[5m:5s] offset 1h) or weight{colour!=""}', 'weight{colour!=""} matches no series'),
        ("absent(weight{fleet='red'})", 'weight{fleet="red"} matches no series'),
        ("sum by (stack, color) (weight)", "label color of by (stack, color) is on no series of weight"),
        ("weight and on (fleet, server) status", "label server of on (fleet, server) is on no series of weight"),
        ("max by (fleet) (weight) * on (stack) status", "label stack of on (stack) is on no series of max by"),
        ("status * on (fleet) group_left (node) weight", "label node of group (node) is on no series of weight"),
        ("sum by (fleet) (sum without (fleet) (weight))", "label fleet of by (fleet) is on no series of sum without"),
        ("sum by (fleet) (sum(weight))", "label fleet of by (fleet) is on no series of sum"),
    ],
)
def test_what_no_endpoint_exports_is_found(expression: str, problem: str) -> None:
    found, *_ = phantoms({"a": expression}, Endpoints())
    assert " ".join(found.split()).startswith(problem)


@pytest.mark.parametrize(
    "expression",
    [
        "sum by (fleet) (weight) / on (fleet) group_left (state) status",
        'max by (other) (label_replace(weight, "other", "$1", "fleet", "(.*)"))',
        'sum by (job) (absent(pg_up{job="x"}) or absent(pg_up{job="y"}))',
        "time() - max by (fleet) (weight) > 5",
    ],
)
def test_labels_that_an_expression_makes_exist(expression: str) -> None:
    problems = phantoms({"a": expression}, Endpoints())
    assert [each for each in problems if each.startswith("label")] == []


def test_series_under_a_fault_are_excused_only_while_their_metric_exists() -> None:
    asked = {"a": 'status{stack="local",state="DOWN"} == 1'}
    excuse = UnderFault(metric="status", label="state", because="no instance is down")
    assert phantoms(asked, Endpoints())
    assert phantoms(asked, Endpoints(), (excuse,)) == {}
    assert phantoms({"a": 'status{stack="other",state="DOWN"}'}, Endpoints(), (excuse,))
    whole = UnderFault(metric="failures_total", because="nothing has failed")
    assert phantoms({"a": 'failures_total{stack="local"}'}, Endpoints(), (whole,))
    assert phantoms({"a": 'failures_total{stack="local"}'}, Endpoints(described={"failures_total"}), (whole,)) == {}


def test_a_metric_that_no_target_describes_must_be_in_its_exporter() -> None:
    asked = {"a": 'pg_slot_active{stack="local"}'}
    for exporter, found in (("usr/bin/slot_active", 0), ("usr/bin/renamed", 1)):
        excuse = UnderFault(metric="pg_slot_active", exporter=exporter, words=("slot", "active"), because="no replica")
        assert len(phantoms(asked, Endpoints(), (excuse,))) == found
