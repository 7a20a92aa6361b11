"""Mutants of the alerts' rules: each differs from the rule in one comparator, threshold, label, window or period.

`surviving` returns the mutants that no scenario of their alert detects. All mutants of an alert are rules of one file,
each under a name of its own, and promtool runs the alert's scenarios once for each of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import promql_parser as promql
import yaml

from monitoring import Alert
from monitoring.rules import TEST_SCOPE, alert_rule, alert_tests
from observatory.runtime import Sandbox

COMPARATORS = {
    ">": (">=", "<"),
    ">=": (">", "<"),
    "<": ("<=", ">"),
    "<=": ("<", ">"),
    "==": ("!=", ">=", "<="),
    "!=": ("==",),
}
OPERATORS = {"/": ("*",), "*": ("/",), "-": ("+",), "+": ("-",), "and": ("unless",), "unless": ("and",)}
NEGATED = {"Equal": "!=", "NotEqual": "=", "Re": "!~", "NotRe": "=~"}
SPELLED = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
UNCHANGED = "unchanged"
REPLACED = ("alertname", "severity", "component", "category")  # by the labels of the rule itself
SHARE = 0.05  # by which a threshold changes
_FAILED = re.compile(r"alertname: (\w+), time")
_ERROR = re.compile(r"rule: (\w+), time")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mutant: the alert, what differs, and the rule."""

    alert: Alert
    number: int
    change: str
    rule: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its rule."""
        return f"{self.alert.name}__{self.number}"

    @property
    def file(self) -> str:
        """The name of its file: a rule that reads which alerts fire must not read other mutants."""
        return self.name if "ALERTS" in self.rule["expr"] else self.alert.name


def mutants(alert: Alert) -> list[Mutant]:
    """Return all mutants of an alert's rule, and first the rule itself, which its scenarios must accept."""
    rule = alert_rule(alert, TEST_SCOPE)
    changes = [(UNCHANGED, {}), *_periods(rule), *_labels(rule), *_expressions(rule["expr"])]
    return [
        Mutant(alert=alert, number=number, change=change, rule={**rule, **changed})
        for number, (change, changed) in enumerate(changes)
    ]


def _periods(rule: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    always = "{" not in rule["expr"]  # an alert without a selector never ends
    for key in ("for",) if always else ("for", "keep_firing_for"):
        for seconds in (60,) if rule[key] == "0s" else _durations(promql.parse_duration(rule[key])):
            yield f"{key}: {rule[key]} -> {seconds}s", {key: f"{seconds}s"}


def _durations(duration: timedelta) -> tuple[int, ...]:
    """Return half and double of a duration in seconds."""
    seconds = int(duration.total_seconds())
    return seconds // 2, seconds * 2


def _labels(rule: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in rule["labels"].items():
        yield f"label {name}", {"labels": {**rule["labels"], name: f"not-{value}"}}


def _expressions(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    tree = promql.parse(text)
    nodes: list[Any] = []
    promql.walk(tree, nodes.append)
    for index, node in enumerate(nodes):
        if index and isinstance(nodes[index - 1], promql.MatrixSelector):
            continue  # its selector, which is changed as a part of it
        for new in _replacements(node):
            changed = _swap(text, index, new)
            yield f"{_line(node.prettify())} -> {_line(new)}", {"expr": changed}


def _line(text: str) -> str:
    return " ".join(text.split())


def _swap(text: str, index: int, new: str) -> str:
    """Return the expression with one node replaced; nodes are counted in the order of `walk`."""
    seen = iter(range(10_000))

    def replace(_node: Any) -> Any:
        return promql.parse(new) if next(seen) == index else None

    return promql.transform(promql.parse(text), replace).prettify()


def _replacements(node: Any) -> Iterator[str]:
    if isinstance(node, promql.NumberLiteral):
        yield from (
            f"{value:.10g}" for value in ((node.val * (1 + SHARE), node.val * (1 - SHARE)) if node.val else (1,))
        )
    elif isinstance(node, promql.MatrixSelector):
        yield from _ranges(node.vector_selector, node.range)
    elif isinstance(node, promql.VectorSelector):
        yield from _ranges(node, None)
    elif isinstance(node, promql.BinaryExpr):
        yield from _binary(node)
    elif isinstance(node, promql.AggregateExpr):
        yield from _aggregate(node)


def _ranges(selector: Any, window: timedelta | None) -> Iterator[str]:
    """Yield selectors with another selection, window or offset."""
    same = _selector(selector.name, _matchers(selector))
    own = f"[{int(window.total_seconds())}s]" if window else ""
    offset = f" offset {int(selector.offset.total_seconds())}s" if selector.offset else ""
    yield from (f"{changed}{own}{offset}" for changed in _selectors(selector))
    yield from (f"{same}[{seconds}s]{offset}" for seconds in (_durations(window) if window else ()))
    yield from (f"{same}{own} offset {seconds}s" for seconds in (_durations(selector.offset) if offset else ()))


def _matchers(selector: Any) -> list[tuple[str, str, str]]:
    return [(each.name, SPELLED[_kind(each)], each.value) for each in selector.matchers.matchers]


def _selectors(selector: Any) -> Iterator[str]:
    """Yield selectors with another metric, with a matcher negated or removed, or without a part of a pattern.

    A removed matcher of the stack is not a mutant: a test reads that every selector has it, and where two series are
    matched by their stack, one matcher has the effect of two.
    """
    name, matchers = selector.name, selector.matchers.matchers
    spelled = _matchers(selector)
    yield _selector(f"{name}_renamed", spelled)
    for index, matcher in enumerate(matchers):
        others = spelled[:index] + spelled[index + 1 :]
        yield _selector(name, [*others, (matcher.name, NEGATED[_kind(matcher)], matcher.value)])
        if matcher.name != "stack":
            yield _selector(name, others)
        parts = matcher.value.split("|") if _kind(matcher).endswith("Re") and "(" not in matcher.value else ()
        for part in parts if len(parts) > 1 else ():
            rest = "|".join(each for each in parts if each != part)
            yield _selector(name, [*others, (matcher.name, SPELLED[_kind(matcher)], rest)])


def _kind(matcher: Any) -> str:
    return str(matcher.op).rpartition(".")[2]


def _selector(name: str, matchers: Sequence[tuple[str, str, str]]) -> str:
    inside = ",".join(f"{label}{operator}{json.dumps(value)}" for label, operator, value in matchers)
    return f"{name}{{{inside}}}"


def _binary(node: Any) -> Iterator[str]:
    operator = str(node.op)
    if operator == "or":
        yield node.lhs.prettify()
        yield node.rhs.prettify()
        return
    for other in (*COMPARATORS.get(operator, ()), *OPERATORS.get(operator, ())):
        if not _equivalent(operator, other, node.rhs):
            yield _joined(node, other, _matching(node))
    for on in _fewer(node.modifier.matching.labels) if node.modifier and node.modifier.matching else ():
        yield _joined(node, operator, _matching(node, on))


def _equivalent(operator: str, other: str, right: Any) -> bool:
    """Return whether a changed `==` means the same for a metric that is 0 or 1, which are compared with 0 or 1."""
    boundary = {"<=": 0, ">=": 1}.get(other)
    return operator == "==" and isinstance(right, promql.NumberLiteral) and right.val == boundary


def _joined(node: Any, operator: str, matching: str) -> str:
    return f"({node.lhs.prettify()}) {operator} {matching} ({node.rhs.prettify()})"


def _matching(node: Any, on: Sequence[str] | None = None) -> str:
    """Return the matching of labels, with other labels than those of the node if `on` is given."""
    modifier = node.modifier
    if not modifier or not modifier.matching:
        return "bool" if modifier and modifier.return_bool else ""
    grouping = {"ManyToOne": "group_left", "OneToMany": "group_right"}.get(str(modifier.card).rpartition(".")[2])
    labels = modifier.matching.labels if on is None else on
    kind = "on" if str(modifier.matching.type).endswith("Include") else "ignoring"
    copied = f" {grouping} ({','.join(modifier.group_labels or ())})" if grouping else ""
    return f"{kind} ({','.join(labels)}){copied}"


def _aggregate(node: Any) -> Iterator[str]:
    if not node.modifier:
        return
    kind = "by" if str(node.modifier.type).endswith("By") else "without"
    replaced = () if kind == "by" else REPLACED
    for labels in _fewer(node.modifier.labels, replaced):
        yield f"{node.op} {kind} ({','.join(labels)}) ({node.expr.prettify()})"


def _fewer(labels: Sequence[str], replaced: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the labels without each one; all series of a stack have the same label `stack`, and the rule sets it."""
    kept = ("stack", *replaced)
    yield from ([other for other in labels if other != label] for label in labels if label not in kept)


def surviving(sandbox: Sandbox, tested: Sequence[Mutant]) -> list[Mutant]:
    """Return the mutants that no scenario detects.

    promtool reports nothing else of a scenario in which the evaluation of a rule fails, as it does for labels that do
    not match one to one. Such a mutant is detected; the others are run again without it.
    """
    left = list(tested)
    while left:
        output = _run(sandbox, left)
        erroneous = set(_ERROR.findall(output))
        detected = erroneous | set(_FAILED.findall(output))
        left = [mutant for mutant in left if mutant.name not in detected]
        if not erroneous:
            break
    return left


def _run(sandbox: Sandbox, tested: Sequence[Mutant]) -> str:
    """Run the scenarios of each mutant's alert, in one promtool for all, and return its report."""
    together: dict[str, list[Mutant]] = {}
    for mutant in tested:
        together.setdefault(mutant.file, []).append(mutant)
    paths = []
    for file, group in together.items():
        rules = [{**mutant.rule, "alert": mutant.name} for mutant in group]
        tests = alert_tests(group[0].alert, rules, file=file)
        written = {name: _write(sandbox, name, document) for name, document in tests.items()}
        paths += [path for name, path in written.items() if not name.endswith(".rules.yaml")]
    done = sandbox.run(["/usr/bin/promtool", "test", "rules", *paths], check=False)
    return done.stdout + done.stderr


def _write(sandbox: Sandbox, name: str, document: dict[str, Any]) -> str:
    path = f"/srv/etc/{name}"
    sandbox.write_file(path, yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False))
    return path
