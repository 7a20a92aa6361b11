"""The model of a dashboard: panels with their queries, units, thresholds and descriptions, and annotations.

It depends on no drawing library. Grafana's JSON is generated from it, and the console draws it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from monitoring.model import dashboard_uid
from monitoring.scrape_jobs import Platform

Kind = Literal["timeseries", "stat", "table"]
Unit = Literal["bytes", "bytes per second", "count", "per second", "percent", "ratio", "seconds", "state", "timestamp"]
"""Unit of a panel's values: `ratio` is from 0 to 1, `percent` from 0 to 100, `timestamp` in seconds since 1970; a
`state` is shown as the text of `Panel.states`."""

COLUMNS = 24  # of a dashboard, as Grafana has them
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
STACK, WINDOW = "$stack", "$window"
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True)
class Query:
    """A PromQL expression and the name of its series.

    Attributes:
        expression: PromQL with the placeholders `$stack`, the name of the stack, and `$window`, the range of a rate.
        legend: name of a series, with labels in Grafana's notation: `{{fleet}} p99`.
        instant: the newest values are read instead of a range, as for a table.
    """

    expression: str
    legend: str
    instant: bool = False

    def on(self, *, stack: str, window: str) -> str:
        """Return the expression for a stack; `window` is a range that has at least four scrapes, e.g. `1m`."""
        return self.expression.replace(STACK, stack).replace(WINDOW, window)

    def name(self, labels: Mapping[str, str]) -> str:
        """Return the name of the series with these labels; a label that is absent is empty."""
        return named(self.legend, labels)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Values from which a panel shows a warning, and a critical state; if `falling`, the values below them."""

    warning: float | None = None
    critical: float | None = None
    falling: bool = False

    def __post_init__(self) -> None:
        if self.warning is None and self.critical is None:
            raise ValueError("thresholds without a value: set `warning` or `critical`, or use Unbounded with a reason")
        if self.warning is not None and self.critical is not None and self.warning != self.critical:
            rising = self.warning < self.critical
            if rising is self.falling:
                raise ValueError(
                    f"thresholds {self.warning} and {self.critical}: the warning is beyond the critical value"
                )

    def level(self, value: float) -> Literal["ok", "warning", "critical"]:
        """Return the level of a value."""
        if self._reached(self.critical, value):
            return "critical"
        return "warning" if self._reached(self.warning, value) else "ok"

    def _reached(self, limit: float | None, value: float) -> bool:
        if limit is None:
            return False
        return value < limit if self.falling else value >= limit


@dataclass(frozen=True, kw_only=True)
class Unbounded:
    """No threshold, and why: no value of the panel is bad in itself."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        title: unique in its dashboard.
        description: what is measured, and what a bad value means.
        unit: unit of all values.
        queries: queries whose series share the panel.
        thresholds: levels of the values.
        kind: lines over time, the newest value of each series, or a table of labels.
        states: text of each value of the unit `state`.
        stacked: lines are stacked, because their sum has a meaning.
        columns: labels that a table shows, in order.
        alerts: names of the alerts on these values.
        platforms: where the metrics exist.
        empty: why the queries may return nothing on a healthy stack; shown instead of values. Empty: they always
            return series.
        width: of 24 columns.
    """

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    thresholds: Thresholds | Unbounded
    kind: Kind = "timeseries"
    states: Mapping[float, str] = field(default_factory=dict)
    stacked: bool = False
    columns: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = PLATFORMS
    empty: str = ""
    width: int = 8

    def __post_init__(self) -> None:
        if not (self.title and self.description and self.queries):
            raise ValueError(f"panel {self.title!r}: it needs a title, a description and a query")
        if not 1 <= self.width <= COLUMNS:
            raise ValueError(f"panel {self.title!r}: width {self.width} is not between 1 and {COLUMNS}")
        if bool(self.states) is not (self.unit == "state"):
            raise ValueError(f"panel {self.title!r}: the unit `state` and the texts of states belong together")
        if bool(self.columns) is not (self.kind == "table"):
            raise ValueError(f"panel {self.title!r}: a table needs columns, and only a table has them")
        for query in self.queries:
            if f'stack="{STACK}"' not in query.expression:
                raise ValueError(f"panel {self.title!r}: no selector names the stack in {query.expression}")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """Events that every graph of a dashboard marks: the times at which an expression has series."""

    name: str
    expression: str
    text: str
    platforms: tuple[Platform, ...] = PLATFORMS

    def on(self, *, stack: str) -> str:
        """Return the expression for a stack."""
        return self.expression.replace(STACK, stack)

    def describe(self, labels: Mapping[str, str]) -> str:
        """Return the text of the event with these labels."""
        return named(self.text, labels)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One dashboard; `name` is the name of its file, and after `storage-` its identifier in Grafana."""

    name: str
    title: str
    description: str
    sections: tuple[Section, ...]
    annotations: tuple[Annotation, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"dashboard {self.name!r}: expected a name of lower-case letters, digits and hyphens")
        for platform in PLATFORMS:
            titles = [panel.title for panel in self.panels(platform)]
            if repeated := sorted({title for title in titles if titles.count(title) > 1}):
                raise ValueError(f"dashboard {self.name}: titles {repeated} occur twice on {platform}")

    @property
    def uid(self) -> str:
        """The identifier, which links use."""
        return dashboard_uid(self.name)

    def on(self, platform: Platform) -> tuple[Section, ...]:
        """Return the sections of a platform, without panels and sections that it lacks."""
        return tuple(
            Section(title=section.title, panels=panels)
            for section in self.sections
            if (panels := tuple(panel for panel in section.panels if platform in panel.platforms))
        )

    def panels(self, platform: Platform) -> Iterator[Panel]:
        """Yield the panels of a platform."""
        for section in self.on(platform):
            yield from section.panels

    def annotations_of(self, platform: Platform) -> tuple[Annotation, ...]:
        """Return the annotations of a platform."""
        return tuple(each for each in self.annotations if platform in each.platforms)


def named(template: str, labels: Mapping[str, str]) -> str:
    """Return a text with each `{{label}}` replaced by its value; a label that is absent is empty."""
    return _LABEL.sub(lambda found: labels.get(found[1], ""), template)
