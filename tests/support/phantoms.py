"""Finds phantoms: metrics and labels that an expression selects and that no endpoint exports.

Prometheus does not report them: a rule on a metric that was renamed loads, is evaluated, and never fires. Each selector
of an expression must match series, and each label of a `by`, `on` or `group_left` must be on the series below it.
`UNDER_FAULT` lists the series that only a fault makes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import promql_parser as promql

ABSENT = {"absent", "absent_over_time"}
MAKES_LABEL = {"label_replace", "label_join"}
ONE_SIDED = {"and", "unless"}
SUFFIX = re.compile(r"_(bucket|count|sum)$")
RECENT_S = 600.0
OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


class Live(Protocol):
    """The series of a running Prometheus."""

    def series(self, selector: str) -> list[dict[str, str]]:
        """Return the labels of the series that a selector matches."""

    def describes(self, metric: str) -> bool:
        """Return whether a target exports a metric of this name, even without a series."""

    def contains(self, program: str, words: tuple[str, ...]) -> bool:
        """Return whether a program of the stack has all of these words in its file."""


@dataclass(frozen=True, kw_only=True)
class UnderFault:
    """Series that a healthy stack does not have.

    Attributes:
        metric: its name.
        label: the label whose value only a fault makes: without it, the selector must match series. None if the
            metric has no series at all; then a target must still describe it, or its exporter contain its name.
        exporter: the program that makes the series, for a metric that is described only with its first series.
        words: the parts of the metric's name in the exporter's file, which puts them together.
        because: why.
    """

    metric: str
    label: str | None = None
    exporter: str = ""
    words: tuple[str, ...] = ()
    because: str


POSTGRES_EXPORTER = "usr/bin/prometheus-postgres-exporter"
UNDER_FAULT = (
    UnderFault(metric="ALERTS", label="severity", because="an alert of this severity has not fired"),
    UnderFault(metric="ALERTS", label="rollback", because="an alert that rolls back has not fired"),
    UnderFault(metric="ALERTS", label="fleet", because="an alert of this fleet has not fired"),
    UnderFault(metric="ALERTS_FOR_STATE", label="rollback", because="an alert that rolls back has not fired"),
    UnderFault(metric="ALERTS_FOR_STATE", label="fleet", because="an alert of this fleet has not fired"),
    UnderFault(metric="pg_stat_activity_count", label="state", because="no session of the fleet is in a transaction"),
    UnderFault(metric="pg_stat_activity_count", label="wait_event_type", because="no session waits for a lock"),
    UnderFault(metric="pg_stat_activity_max_tx_duration", label="state", because="no session is in a transaction"),
    UnderFault(
        metric="pg_replication_slot_slot_is_active",
        exporter=POSTGRES_EXPORTER,
        words=("replication_slot", "slot_is_active"),
        because="a stack with one database node has no replication slot",
    ),
    UnderFault(
        metric="pg_stat_replication_pg_wal_lsn_diff",
        exporter=POSTGRES_EXPORTER,
        words=("stat_replication", "pg_wal_lsn_diff"),
        because="a stack with one database node has no replica",
    ),
)


def phantoms(
    expressions: Mapping[str, str], live: Live, under_fault: tuple[UnderFault, ...] = UNDER_FAULT
) -> dict[str, list[str]]:
    """Return what no endpoint exports, each with the names of the expressions that it makes silent."""
    finder, found = _Finder(live, under_fault), dict[str, list[str]]()
    for name, expression in expressions.items():
        for problem in dict.fromkeys(finder.problems(promql.parse(expression))):
            found.setdefault(problem, []).append(name)
    return found


def report(found: Mapping[str, list[str]]) -> str:
    """Return a line for each phantom, with what it makes silent."""
    return "\n".join(f"{problem}; silent: {', '.join(names)}" for problem, names in found.items())


@dataclass(frozen=True, kw_only=True)
class LiveSeries:
    """The series of a Prometheus of the last minutes.

    Attributes:
        get: returns the `data` of a path of its API.
        rootfs: the root filesystem of the stack's programs.
    """

    get: Callable[..., Any]
    rootfs: Path

    def series(self, selector: str) -> list[dict[str, str]]:
        """Return the labels of the series that a selector matches."""
        found: list[dict[str, str]] = self.get(
            "/api/v1/series", **{"match[]": selector, "start": str(time.time() - RECENT_S)}
        )
        return found

    def describes(self, metric: str) -> bool:
        """Return whether a target exports a metric of this name, even without a series."""
        return any(self.get("/api/v1/metadata", metric=name) for name in (metric, SUFFIX.sub("", metric)))

    def contains(self, program: str, words: tuple[str, ...]) -> bool:
        """Return whether a program of the stack has all of these words in its file."""
        content = (self.rootfs / program).read_bytes()
        return all(word.encode() in content for word in words)


class _Finder:
    """Compares expressions with live series."""

    def __init__(self, live: Live, under_fault: tuple[UnderFault, ...]) -> None:
        self._live, self._under_fault = live, under_fault
        self._known: dict[str, list[dict[str, str]]] = {}

    def problems(self, tree: promql.Expr) -> Iterator[str]:
        """Yield the selectors without series, and the labels that the series below an operator lack."""
        for node in _nodes(tree):
            if isinstance(node, promql.VectorSelector):
                if not self._exists(node):
                    yield f"{_text(node)} matches no series"
            else:
                yield from self._lacking(node)

    def _exists(self, selector: promql.VectorSelector) -> bool:
        """Return whether series match, or would under a fault."""
        if self._series(_text(selector)):
            return True
        excused = [each for each in self._under_fault if each.metric == selector.name]
        if any(each.label is None for each in excused):
            return any(self._is_exported(each) for each in excused)
        labels = {each.label for each in excused}
        return bool(labels) and bool(self._series(_text(selector, without=labels)))

    def _is_exported(self, excused: UnderFault) -> bool:
        if self._live.describes(excused.metric):
            return True
        return bool(excused.words) and self._live.contains(excused.exporter, excused.words)

    def _series(self, text: str) -> list[dict[str, str]]:
        if text not in self._known:
            self._known[text] = self._live.series(text)
        return self._known[text]

    def _lacking(self, node: promql.Expr) -> Iterator[str]:
        """Yield the labels that an operator names and that the series below it lack."""
        for operator, labels, below in _groupings(node):
            available = self._labels(below)
            if available is not None:
                for label in sorted({*labels} - available):
                    yield f"label {label} of {operator} ({', '.join(labels)}) is on no series of {below.prettify()}"

    def _labels(self, node: Any) -> set[str] | None:
        """Return the labels that the result of an expression can have; None if no series shows them."""
        if isinstance(node, promql.VectorSelector):
            return {label for one in self._series(_text(node)) for label in one} or None
        if isinstance(node, promql.MatrixSelector):
            return self._labels(node.vector_selector)
        if isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
            return self._labels(node.expr)
        makers: dict[type, Callable[[Any], set[str] | None]] = {
            promql.AggregateExpr: self._labels_of_aggregate,
            promql.BinaryExpr: self._labels_of_binary,
            promql.Call: self._labels_of_call,
        }
        maker = makers.get(type(node))
        return maker(node) if maker else set()

    def _labels_of_aggregate(self, node: promql.AggregateExpr) -> set[str] | None:
        below, modifier = self._labels(node.expr), node.modifier
        if below is None or modifier is None:
            return None if below is None else set()
        named = set(modifier.labels)
        return below & named if modifier.type == promql.AggModifierType.By else below - named

    def _labels_of_binary(self, node: promql.BinaryExpr) -> set[str] | None:
        left, right = self._labels(node.lhs), self._labels(node.rhs)
        if str(node.op) in ONE_SIDED:
            return left
        if left is None or right is None:
            return None
        modifier = node.modifier
        if modifier is None or str(node.op) == "or" or modifier.matching is None:
            return left | right
        if modifier.card == promql.VectorMatchCardinality.ManyToOne:
            return left | set(modifier.group_labels or ())
        if modifier.card == promql.VectorMatchCardinality.OneToMany:
            return right | set(modifier.group_labels or ())
        return left

    def _labels_of_call(self, node: promql.Call) -> set[str] | None:
        if node.func.name in ABSENT:
            return {label for each in _nodes(node) if isinstance(each, promql.VectorSelector) for label in _equal(each)}
        vectors = [self._labels(each) for each in node.args]
        if None in vectors:
            return None
        made = {node.args[1].val} if node.func.name in MAKES_LABEL else set()
        return made.union(*(each for each in vectors if each))


def _nodes(tree: promql.Expr) -> list[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(tree, found.append)
    return found


def _groupings(node: promql.Expr) -> Iterator[tuple[str, list[str], promql.Expr]]:
    """Yield each operator of a node that names labels, with its labels and the expression that must have them."""
    if isinstance(node, promql.AggregateExpr) and node.modifier and node.modifier.type == promql.AggModifierType.By:
        yield "by", node.modifier.labels, node.expr
    if isinstance(node, promql.BinaryExpr) and node.modifier:
        matching, card = node.modifier.matching, node.modifier.card
        if matching and matching.type == promql.LabelModifierType.Include:
            yield "on", matching.labels, node.lhs
            yield "on", matching.labels, node.rhs
        if node.modifier.group_labels:
            one_side = node.rhs if card == promql.VectorMatchCardinality.ManyToOne else node.lhs
            yield "group", node.modifier.group_labels, one_side


def _text(selector: promql.VectorSelector, *, without: Collection[str | None] = ()) -> str:
    """Return a selector without its offset, and without the matchers of some labels."""
    if selector.matchers.or_matchers:
        raise ValueError(f"{selector.prettify()}: a selector with `or` is not examined")
    matchers = ",".join(
        f"{each.name}{OPERATORS[str(each.op)]}{json.dumps(each.value, ensure_ascii=False)}"
        for each in selector.matchers.matchers
        if each.name not in without
    )
    return f"{selector.name or ''}{{{matchers}}}"


def _equal(selector: promql.VectorSelector) -> Iterator[str]:
    """Yield the labels that a selector compares for equality."""
    return (each.name for each in selector.matchers.matchers if each.op == promql.MatchOp.Equal)
