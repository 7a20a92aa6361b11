"""Grafana's JSON of the dashboards, by Grafana's own SDK. Only a developer's machine has the SDK.

The JSON has a variable for the data source and one for the stack, so one file is for every stack of a platform. It is
of the classic schema, which Grafana's sidecar for ConfigMaps provisions; the SDK recommends the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from grafana_foundation_sdk.builders import common as layout
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards import DASHBOARDS
from monitoring.dashboards.files import file_name
from monitoring.dashboards.model import (
    PLATFORMS,
    Annotation,
    Dashboard,
    Panel,
    Query,
    Thresholds,
    Unbounded,
    Unit,
)
from monitoring.scrape_jobs import Platform

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
STACK, WINDOW = "$stack", "$__rate_interval"
GREEN, ORANGE, RED, NEUTRAL = "green", "orange", "red", "blue"
HEIGHTS = {"timeseries": 8, "stat": 5, "table": 7}
UNITS: Mapping[Unit, str] = {
    "bytes": "bytes",
    "bytes per second": "Bps",
    "count": "short",
    "per second": "ops",
    "percent": "percent",
    "ratio": "percentunit",
    "seconds": "s",
    "state": "none",
    "timestamp": "dateTimeAsIso",
}

Builder = timeseries.Panel | stat.Panel | table.Panel


def documents() -> dict[str, str]:
    """Return the JSON of every dashboard on every platform, by the name of its file."""
    return {
        file_name(each.name, platform): JSONEncoder(sort_keys=True, indent=2).encode(_build(each, platform)) + "\n"
        for platform in PLATFORMS
        for each in DASHBOARDS
    }


def _build(board: Dashboard, platform: Platform) -> dashboard.Dashboard:
    builder = (
        grafana.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["llm-observatory", "storage"])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .variables([_source_variable(), _stack_variable()])
        .annotations([_annotation(each) for each in board.annotations_of(platform)])
        .link(
            grafana.DashboardLink("Storage")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags(["llm-observatory"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    numbers = count(1)
    for section in board.on(platform):
        builder.with_row(grafana.Row(section.title).id(next(numbers)))
        for panel in section.panels:
            builder.with_panel(_panel(panel, next(numbers)))
    return builder.build()


def _source_variable() -> grafana.DatasourceVariable:
    return grafana.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _stack_variable() -> grafana.QueryVariable:
    return (
        grafana.QueryVariable("stack")
        .label("Stack")
        .datasource(SOURCE)
        .query("label_values(up, stack)")
        .definition("label_values(up, stack)")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    )


def _annotation(annotation: Annotation) -> grafana.AnnotationQuery:
    return (
        grafana.AnnotationQuery()
        .name(annotation.name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color("purple")
        .expr(annotation.on(stack=STACK))
        .title_format(annotation.name)
        .text_format(annotation.text)
        .step("15s")
    )


def _panel(panel: Panel, number: int) -> Builder:
    builder = _drawing(panel)
    builder.id(number).title(panel.title).description(_description(panel)).datasource(SOURCE)
    builder.span(panel.width).height(HEIGHTS[panel.kind]).unit(UNITS[panel.unit]).thresholds(_steps(panel.thresholds))
    for position, query in enumerate(panel.queries):
        builder.with_target(_target(query, panel, chr(ord("A") + position)))
    if panel.states:
        builder.mappings([_texts(panel)])
    if panel.empty:
        builder.no_value(panel.empty)
    return builder


def _drawing(panel: Panel) -> Builder:
    """Return the builder of the panel's kind."""
    if panel.kind == "timeseries":
        return _lines(panel)
    return _stat() if panel.kind == "stat" else _table(panel)


def _description(panel: Panel) -> str:
    """Return the description with the reason of a missing threshold, and the names of the alerts."""
    reason = f" No threshold: {panel.thresholds.reason}" if isinstance(panel.thresholds, Unbounded) else ""
    alerts = f" Alerts: {', '.join(panel.alerts)}." if panel.alerts else ""
    return f"{panel.description}{reason}{alerts}"


def _target(query: Query, panel: Panel, reference: str) -> Dataquery:
    target = Dataquery().expr(query.on(stack=STACK, window=WINDOW)).ref_id(reference)
    if panel.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    (target.instant if query.instant else target.range)()
    return target.legend_format(query.legend)


def _steps(thresholds: Thresholds | Unbounded) -> grafana.ThresholdsConfig:
    """Return Grafana's steps: each applies from its value on; the first has none."""
    steps = [dashboard.Threshold(value=value, color=color) for value, color in _colors(thresholds)]
    return grafana.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _colors(thresholds: Thresholds | Unbounded) -> Iterator[tuple[float | None, str]]:
    if isinstance(thresholds, Unbounded):
        return iter([(None, NEUTRAL)])
    levels = [(thresholds.warning, ORANGE), (thresholds.critical, RED)]
    given = sorted((value, color) for value, color in levels if value is not None)
    starts, colors = [None, *(value for value, _ in given)], [color for _, color in given]
    return zip(starts, [*colors, GREEN] if thresholds.falling else [GREEN, *colors], strict=True)


def _texts(panel: Panel) -> dashboard.ValueMap:
    return dashboard.ValueMap(
        options={
            f"{value:g}": dashboard.ValueMappingResult(text=text, index=position)
            for position, (value, text) in enumerate(panel.states.items())
        }
    )


def _lines(panel: Panel) -> timeseries.Panel:
    builder = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(30 if panel.stacked else 10)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            layout.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .tooltip(layout.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    if not isinstance(panel.thresholds, Unbounded):
        builder.thresholds_style(layout.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    if panel.stacked:
        builder.stacking(layout.StackingConfig().mode(common.StackingMode.NORMAL))
    return builder.min(0)


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(layout.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _table(panel: Panel) -> table.Panel:
    return table.Panel().transformations(
        [
            dashboard.DataTransformerConfig(
                id_val="filterFieldsByName", options={"include": {"names": list(panel.columns)}}
            ),
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={"indexByName": {name: position for position, name in enumerate(panel.columns)}},
            ),
        ]
    )
