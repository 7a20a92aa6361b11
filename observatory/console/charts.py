"""The values of a dashboard's panels, read from the stack's Prometheus, as the page's script draws them.

Owns ranges, resolutions and units. `monitoring.dashboards` has the panels. Only their queries run: a browser names a
dashboard and a range, never an expression.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitoring.dashboards import DASHBOARDS, Dashboard, Panel, Query, Thresholds
from observatory import operations
from observatory.console import text
from observatory.delivery.environment import MetricsUnavailableError
from observatory.errors import ObservatoryError
from observatory.operations import Workspace
from observatory.platforms.prometheus_client import QueryRefusedError

RANGES = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
DEFAULT_RANGE = "1h"
POINTS = 240  # of a line
GAP_STEPS = 1.5  # between two points of a line, above which a value is missing
STEP_S = 5  # at least: the interval of scrapes
SCRAPES = 4  # in the range of a rate
READ_SECONDS = 20.0  # for the panels of a dashboard: other pages wait for it
SILENT = 2  # queries in a row without an answer, after which no more are sent: one may only take too long
SERIES = 40  # of a panel; more cannot be distinguished


def dashboard_named(name: str) -> Dashboard | None:
    """Return a dashboard by its name."""
    return next((each for each in DASHBOARDS if each.name == name), None)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The time that is shown, in seconds since the epoch, and the seconds between two values.

    `now` is the time of newest values. It is up to one step after the end: 42 minutes of seven days.
    """

    start: float
    end: float
    step: float
    now: float

    @classmethod
    def last(cls, seconds: float) -> Window:
        """Return the last seconds; times are multiples of the step, so that a value stays when the page reads again."""
        step = max(STEP_S, math.ceil(seconds / POINTS))
        now = time.time()
        end = math.floor(now / step) * step
        return cls(start=end - seconds, end=end, step=step, now=now)

    @property
    def rate(self) -> str:
        """The range of a rate: no scrape between two values is left out."""
        return f"{max(SCRAPES * STEP_S, math.ceil(self.step))}s"


def panel_id(index: int) -> str:
    """Return the identifier of a panel in the page."""
    return f"panel-{index}"


def read_dashboard(workspace: Workspace, dashboard: Dashboard, seconds: float) -> dict[str, Any]:
    """Return the values of all panels of a dashboard, by their identifiers.

    A panel that cannot be read has the reason instead of values. `problem` is why no more panels were read: Prometheus
    did not answer several times in a row, or is slow.
    """
    begun, window, problem, silent = time.monotonic(), Window.last(seconds), "", 0
    panels: dict[str, Any] = {}
    for index, panel in enumerate(dashboard.panels("local")):
        if time.monotonic() - begun > READ_SECONDS:
            problem = f"Prometheus is slow: only {len(panels)} panels were read in {READ_SECONDS:.0f} s."
        if problem:
            break
        try:
            panels[panel_id(index)] = _drawn(panel, _series(workspace, panel, window))
            silent = 0
        except MetricsUnavailableError as error:
            panels[panel_id(index)] = {"kind": panel.kind, "empty": str(error)}
            silent = 0 if isinstance(error, QueryRefusedError) else silent + 1
            problem = str(error) if silent == SILENT else ""
        except ObservatoryError as error:
            return {"problem": str(error), "panels": {}}
    return {
        "problem": problem,
        "start": window.start * 1000,
        "end": window.end * 1000,
        "now": window.now * 1000,
        "panels": panels,
        "annotations": [] if problem else list(_annotations(workspace, dashboard, window)),
    }


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One series: its name, its labels, and its values by time."""

    name: str
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


def _series(workspace: Workspace, panel: Panel, window: Window) -> list[_Line]:
    lines = [
        _Line(
            name=query.name(series["metric"]) or panel.title,
            labels=series["metric"],
            points=_with_gaps([(float(at), float(value)) for at, value in series["values"]], window.step),
        )
        for query in panel.queries
        for series in _query(workspace, query, panel, window)
    ]
    if (left := len(lines) - SERIES) > 0:
        name = f"{left} more are not shown"
        lines[SERIES:] = [_Line(name=name, labels=dict.fromkeys(panel.columns[:1], name), points=[])]
    return lines


def _with_gaps(points: Sequence[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Return points with a missing value after each that has none a step later: a line would show what never was."""
    found: list[tuple[float, float]] = []
    for at, value in points:
        if found and at - found[-1][0] > GAP_STEPS * step:
            found.append((found[-1][0] + step, math.nan))
        found.append((at, value))
    return found


def _query(workspace: Workspace, query: Query, panel: Panel, window: Window) -> list[dict[str, Any]]:
    expression = query.on(stack=workspace.stack, window=window.rate)
    newest = query.instant or panel.kind != "timeseries"
    start, end = (window.now, window.now) if newest else (window.start, window.end)
    return operations.query_metrics(workspace, expression, start=start, end=end, step=window.step)


def _annotations(workspace: Workspace, dashboard: Dashboard, window: Window) -> Iterator[dict[str, Any]]:
    """Yield the moments at which the events of a dashboard begin."""
    for annotation in dashboard.annotations_of("local"):
        expression = annotation.on(stack=workspace.stack)
        try:
            found = operations.query_metrics(
                workspace, expression, start=window.start, end=window.end, step=window.step
            )
        except ObservatoryError:  # the panels say so
            return
        for series in found:
            times = [float(at) for at, _ in series["values"]]
            for index, at in enumerate(times):
                if index == 0 or at - times[index - 1] > 2 * window.step:
                    yield {"at": at * 1000, "text": annotation.describe(series["metric"])}


def _drawn(panel: Panel, lines: Sequence[_Line]) -> dict[str, Any]:
    drawn: dict[str, Any] = {"kind": panel.kind, "empty": "" if lines else panel.empty or "No data in this range."}
    if panel.kind == "timeseries":
        return drawn | _graph(panel, lines)
    if panel.kind == "table":
        return drawn | {
            "columns": [*panel.columns],
            "rows": sorted([each.labels.get(column, "") for column in panel.columns] for each in lines),
        }
    values = [(each.name, each.points[-1][1] if each.points else math.nan) for each in lines]
    return drawn | {
        "values": [
            {"name": name, "text": _value(panel, number), "level": _level(panel, number)} for name, number in values
        ]
    }


def _graph(panel: Panel, lines: Sequence[_Line]) -> dict[str, Any]:
    numbers = [abs(value) for line in lines for _, value in line.points if math.isfinite(value)]
    factor, unit = text.scale(panel.unit, max(numbers, default=0.0))
    limits = panel.thresholds
    bounds = {"warning": limits.warning, "critical": limits.critical} if isinstance(limits, Thresholds) else {}
    return {
        "unit": unit,
        "stacked": panel.stacked,
        "states": {str(number): name for number, name in panel.states.items()},
        "is_time": panel.unit == "timestamp",
        "limits": {name: limit * factor for name, limit in bounds.items() if limit is not None},
        "lines": [
            {
                "name": line.name,
                "x": [at * 1000 for at, _ in line.points],
                "y": [_finite(value * factor) for _, value in line.points],
            }
            for line in lines
        ],
    }


def _finite(number: float) -> float | None:
    """Return a number that JSON has; a missing one is a gap in the line."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _value(panel: Panel, number: float) -> str:
    return panel.states.get(number, f"{number:g}") if panel.unit == "state" else text.value(number, panel.unit)


def _level(panel: Panel, number: float) -> str:
    if math.isnan(number) or not isinstance(panel.thresholds, Thresholds):
        return "none"
    return panel.thresholds.level(number)
