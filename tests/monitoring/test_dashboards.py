"""The dashboards: each query is PromQL of one stack; a panel without unit, thresholds or description is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml

from monitoring import Scope
from monitoring.__main__ import generated
from monitoring.dashboards import DASHBOARDS, Annotation, Dashboard, Panel, Query, Section, Thresholds, Unbounded
from monitoring.dashboards.files import of_stack, read
from monitoring.dashboards.model import COLUMNS, PLATFORMS
from monitoring.model import Dashboard as DashboardName
from monitoring.model import dashboard_uid
from monitoring.registry import ALERTS
from monitoring.scrape_jobs import Platform
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


def test_every_dashboard_that_an_alert_links_to_exists() -> None:
    assert {each.name for each in DASHBOARDS} == set(get_args(DashboardName))


def test_every_alert_is_named_by_a_panel_of_the_dashboard_to_which_it_links() -> None:
    named = {
        (dashboard.name, alert)
        for dashboard in DASHBOARDS
        for section in dashboard.sections
        for panel in section.panels
        for alert in panel.alerts
    }
    assert [alert.name for alert in ALERTS if (alert.dashboard, alert.name) not in named] == []
    assert {alert for _, alert in named} == {alert.name for alert in ALERTS}


def test_nothing_generated_is_stale() -> None:
    for directory, files in generated().items():
        written = {str(file.relative_to(directory)): file for file in directory.rglob("*") if file.is_file()}
        remedy = f"run `python -m monitoring`: {directory}"
        assert written.keys() == files.keys(), remedy
        assert [name for name, file in written.items() if file.read_text(encoding="utf-8") != files[name]] == [], remedy


def panels(dashboard: Dashboard, platform: Platform) -> list[dict[str, Any]]:
    """Return the panels of Grafana's JSON, without the headings."""
    found: list[dict[str, Any]] = json.loads(read(dashboard, platform))["panels"]
    identifiers = [panel["id"] for panel in found]
    assert sorted(set(identifiers)) == sorted(identifiers)
    return [panel for panel in found if panel["type"] != "row"]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_grafana_has_every_panel_with_its_unit_thresholds_and_description(
    dashboard: Dashboard, platform: Platform
) -> None:
    found = panels(dashboard, platform)
    assert [panel["title"] for panel in found] == [panel.title for panel in dashboard.panels(platform)]
    for panel in found:
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"]
        assert panel["description"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert 'stack="$stack"' in target["expr"]
            assert "$window" not in target["expr"]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_panels_do_not_overlap(dashboard: Dashboard, platform: Platform) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(dashboard, platform):
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(column for column, _ in cells) < COLUMNS, panel["title"]
        taken |= cells


def test_grafana_colors_values_as_the_model_judges_them() -> None:
    """Grafana applies the last step whose value is not above the measured one."""
    colors = {"ok": "green", "warning": "orange", "critical": "red"}
    judged = 0
    for dashboard in DASHBOARDS:
        for model, panel in zip(dashboard.panels("local"), panels(dashboard, "local"), strict=True):
            if isinstance(model.thresholds, Unbounded):
                continue
            limits = [each for each in (model.thresholds.warning, model.thresholds.critical) if each is not None]
            for value in [0.0, *limits, *(0.99 * limit for limit in limits), *(1.01 * limit for limit in limits)]:
                reached = [
                    step["color"]
                    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
                    if step["value"] is None or step["value"] <= value
                ]
                assert reached[-1] == colors[model.thresholds.level(value)], (model.title, value)
                judged += 1
    assert judged > 100


def test_stacks_of_one_cluster_have_dashboards_of_their_own_to_which_their_alerts_link() -> None:
    overview = DASHBOARDS[0]
    documents = {stack: json.loads(of_stack(overview, "aws", stack=stack)) for stack in ("staging", "production")}
    assert len({document["uid"] for document in documents.values()}) == 2
    for stack, document in documents.items():
        assert document["title"] == f"Storage: overview ({stack})"
        (variable,) = [each for each in document["templating"]["list"] if each["name"] == "stack"]
        assert (variable["type"], variable["query"]) == ("constant", stack)
        scope = Scope(stack=stack, runbooks="http://r", dashboards="https://grafana/d", platform="aws")
        (alert,) = [each for each in ALERTS if each.name == "Watchdog"]
        assert alert.annotations(scope)["dashboard_url"] == f"https://grafana/d/{document['uid']}"


def test_an_identifier_fits_grafana() -> None:
    assert dashboard_uid("overview", stack="production") == "storage-overview-production"
    long = {dashboard_uid("timescaledb", stack="s" * 60 + end) for end in "ab"}
    assert len(long) == 2
    assert {len(each) for each in long} == {40}
