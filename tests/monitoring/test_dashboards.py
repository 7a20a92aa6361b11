"""The dashboards: each query is PromQL of one stack; a panel without unit, thresholds or description is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from monitoring.dashboards import DASHBOARDS, Annotation, Dashboard, Panel, Query, Section, Thresholds, Unbounded
from monitoring.dashboards.model import PLATFORMS
from observatory.runtime import Sandbox

SELECTOR = re.compile(r"\b[a-zA-Z_:][\w:]*\{[^}]*\}")
PANEL: dict[str, Any] = {
    "title": "A",
    "description": "B.",
    "unit": "count",
    "queries": (Query(expression='up{stack="$stack"}', legend="{{instance}} of {{ job }}"),),
    "thresholds": Thresholds(warning=1),
}


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression with its place."""
    for dashboard in DASHBOARDS:
        for annotation in dashboard.annotations:
            yield f"{dashboard.name}/{annotation.name}", annotation.on(stack="local")
        for section in dashboard.sections:
            for panel in section.panels:
                for query in panel.queries:
                    yield f"{dashboard.name}/{panel.title}", query.on(stack="local", window="1m")


def test_every_selector_names_the_stack() -> None:
    found = [(place, selector) for place, text in expressions() for selector in SELECTOR.findall(text)]
    assert len(found) > 100
    assert [each for each in found if 'stack="local"' not in each[1]] == []


def test_no_placeholder_is_left() -> None:
    assert [place for place, text in expressions() if "$stack" in text or "$window" in text] == []


def test_prometheus_parses_every_expression(sandbox: Sandbox) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": text, "labels": {"place": place}}
        for number, (place, text) in enumerate(expressions())
    ]
    sandbox.write_file("/srv/etc/panels.yaml", yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = sandbox.run(["/usr/bin/promtool", "check", "rules", "/srv/etc/panels.yaml"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_texts_are_sentences_and_both_platforms_have_panels(dashboard: Dashboard) -> None:
    for platform in PLATFORMS:
        panels = list(dashboard.panels(platform))
        assert len(panels) >= 6
        texts = [panel.description for panel in panels] + [panel.empty for panel in panels if panel.empty]
        reasons = [panel.thresholds.reason for panel in panels if isinstance(panel.thresholds, Unbounded)]
        assert [text for text in (dashboard.description, *texts, *reasons) if not text.endswith(".")] == []


def test_no_panel_of_aws_reads_metrics_that_it_lacks() -> None:
    found = [
        panel.title
        for dashboard in DASHBOARDS
        for panel in dashboard.panels("aws")
        for query in panel.queries
        if re.search(r"haproxy_|balancer_|storage_fleet_weight|prometheus_|alertmanager_|_heartbeat_", query.expression)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"description": ""}, "needs a title, a description and a query"),
        ({"title": ""}, "needs a title, a description and a query"),
        ({"queries": ()}, "needs a title, a description and a query"),
        ({"width": 25}, "width 25 is not between 1 and 24"),
        ({"unit": "state"}, "the texts of states belong together"),
        ({"states": {0.0: "down"}}, "the texts of states belong together"),
        ({"kind": "table"}, "a table needs columns"),
        ({"columns": ("fleet",)}, "a table needs columns"),
        ({"queries": (Query(expression="up", legend=""),)}, "no selector names the stack in up"),
    ],
)
def test_an_incomplete_panel_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Panel(**{**PANEL, **change})


@pytest.mark.parametrize("missing", ["unit", "thresholds", "description", "title", "queries"])
def test_a_panel_without_a_required_part_cannot_be_written(missing: str) -> None:
    with pytest.raises(TypeError, match=missing):
        Panel(**{name: value for name, value in PANEL.items() if name != missing})


def test_thresholds_without_a_value_or_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="thresholds without a value"):
        Thresholds()
    with pytest.raises(ValueError, match="beyond the critical value"):
        Thresholds(warning=0.15, critical=0.3, falling=True)
    with pytest.raises(ValueError, match="beyond the critical value"):
        Thresholds(warning=3, critical=1)


@pytest.mark.parametrize(
    ("thresholds", "levels"),
    [
        (Thresholds(warning=1, critical=3), {0.9: "ok", 1: "warning", 2.9: "warning", 3: "critical"}),
        (Thresholds(warning=0.3, critical=0.15, falling=True), {0.3: "ok", 0.29: "warning", 0.14: "critical"}),
        (Thresholds(critical=1, falling=True), {1: "ok", 0: "critical"}),
        (Thresholds(warning=1), {0: "ok", 1: "warning", 1e9: "warning"}),
    ],
)
def test_levels_of_values(thresholds: Thresholds, levels: dict[float, str]) -> None:
    assert {value: thresholds.level(value) for value in levels} == levels


def test_series_are_named_by_their_labels() -> None:
    (query,) = PANEL["queries"]
    assert query.name({"instance": "one", "job": "node"}) == "one of node"
    assert query.name({"job": "<b>"}) == " of <b>"
    annotation = Annotation(name="A", expression='up{stack="$stack"}', text="{{instance}} is up")
    assert annotation.describe({"instance": "one"}) == "one is up"


def test_a_title_occurs_once_on_a_platform() -> None:
    local, aws = (Panel(**PANEL, platforms=(platform,)) for platform in PLATFORMS)
    Dashboard(name="a", title="A", description="B.", sections=(Section(title="S", panels=(local, aws)),))
    with pytest.raises(ValueError, match="occur twice on local"):
        Dashboard(name="a", title="A", description="B.", sections=(Section(title="S", panels=(local, local)),))
    with pytest.raises(ValueError, match="expected a name of lower-case letters"):
        Dashboard(name="../a", title="A", description="B.", sections=())


def test_a_section_without_panels_of_a_platform_is_left_out() -> None:
    local = Panel(**PANEL, platforms=("local",))
    dashboard = Dashboard(name="a", title="A", description="B.", sections=(Section(title="S", panels=(local,)),))
    assert dashboard.on("aws") == ()
    assert [section.title for section in dashboard.on("local")] == ["S"]
