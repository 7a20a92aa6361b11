"""Pages show what can be read and say what cannot; none needs a stack that is up."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitoring import ALERTS
from monitoring.dashboards import DASHBOARDS
from observatory import console as console_package
from observatory import operations
from observatory.console import attention, charts, text
from observatory.console import readings as readings_module
from observatory.console.deployments import SHOWN_GATES
from observatory.console.pages import Pages
from observatory.console.worker import Worker, WorkerError
from observatory.delivery.environment import MetricsUnavailableError
from observatory.documents.journal import Entry, entries
from observatory.engines import embedded
from observatory.platforms.platform import DaemonStatus
from observatory.platforms.prometheus_client import PrometheusClient, QueryRefusedError
from tests.console.conftest import Served
from tests.house.test_commands import called, problems
from tests.support.checkout import Checkout
from tests.support.clock import own_clock
from tests.support.ports import free_port
from tests.support.upgrades import Recorded, recorded_releases
from tests.support.waiting import until

TEMPLATES = Path(console_package.__file__).parent / "templates"
ADDRESSES = [
    *("", "deployments", "alerts", "backups", "migrations", "jobs", "audit", "audit?find=promoted&page=7"),
    *(f"dashboards/{each.name}" for each in DASHBOARDS),
    "runbooks/StorageDatabaseDown",
]


def test_every_page_of_a_stack_that_was_never_up_says_what_to_do(console: Served) -> None:
    with console.session() as (client, path):
        for address in ADDRESSES:
            answer = client.get(f"{path}{address}")
            assert answer.status_code == 200, (address, answer.text)
        assert "is not up" in client.get(path).text
        assert "observatory up" in client.get(path).text
        for address in ("none", "alerts/none", "runbooks", "runbooks/none", "deployments/none", "dashboards/none"):
            assert client.get(f"{path}{address}").status_code == 404, address
        assert client.get(f"{path}data/overview").json()["panels"] == {}


def test_links_of_pages_lead_to_pages(console: Served) -> None:
    with console.session() as (client, path):
        for address in ("", "runbooks/StorageDatabaseDown"):
            page = client.get(f"{path}{address}")
            links = {part.partition('"')[0] for part in page.text.split(' href="')[1:]}
            relative = {each for each in links if not each.startswith(("/static", "#", "data:"))}
            assert len(relative) >= 8
            assert {client.get(str(page.url.join(each))).status_code for each in relative} == {200}


def test_a_child_that_died_is_replaced(console: Served, worker: Worker) -> None:
    with console.session() as (client, path):
        assert client.get(path).status_code == 200
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        until(lambda: client.get(path).status_code == 200, "a page of the next child")


def test_a_page_that_cannot_be_read_at_all_is_read_again(console: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> None:
        raise WorkerError("reading the stack takes longer than 60 s")

    monkeypatch.setattr(Worker, "answer", slow)
    with console.session() as (client, path):
        answer = client.get(path)
    assert answer.status_code == 503
    assert "takes longer than 60 s" in answer.text
    assert '<meta http-equiv="refresh"' in answer.text


def test_a_child_that_is_not_used_ends(worker: Worker, console: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with console.session() as (client, path):
        client.get(path)
    worker.end_if_idle()
    assert worker._process is not None
    monkeypatch.setattr("observatory.console.worker.IDLE_SECONDS", -1.0)
    worker.end_if_idle()
    assert worker._process is None


def test_a_request_that_waited_while_the_console_ended_starts_no_child(fresh: Checkout) -> None:
    ended = Worker(fresh.root, "local")
    ended.close()
    with pytest.raises(WorkerError, match="ends"):
        ended.answer("", {})
    assert ended._process is None


@pytest.fixture
def pages(fresh: Checkout, monkeypatch: pytest.MonkeyPatch) -> Pages:
    monkeypatch.setattr(charts, "READ_SECONDS", 600.0)  # for the panels of a dashboard, on a busy machine
    return Pages(operations.open_workspace("local", fresh.root))


def shown(pages: Pages, path: str) -> str:
    status, _, body = pages.answer(path, {})
    assert status == 200, body
    return body.decode()


def test_without_prometheus_everything_else_is_shown(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    database = f"postgresql://nobody@127.0.0.1:{port}/none"
    outputs = {"prometheus_url": address, "alertmanager_url": address, "admin_database_url": database}
    monkeypatch.setattr(embedded, "outputs", lambda *_, **__: outputs)
    for path in ("", "alerts"):
        page = shown(pages, path)
        assert f"Prometheus at {address} does not answer" in page
    assert f"Alertmanager at {address} does not answer" in shown(pages, "alerts")
    status, _, body = pages.answer("data/overview", {"range": "1h"})
    assert status == 200
    assert f"Prometheus at {address} does not answer".encode() in body
    assert "Restore drills" in shown(pages, "backups")


def test_a_reading_that_takes_long_is_kept_longer_and_forgotten_then(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = own_clock(monkeypatch, readings_module)
    clock[0] = 1000.0
    reads: list[float] = []

    def slow(*_: Any, **__: Any) -> list[Any]:
        reads.append(clock[0])
        clock[0] += 2.0
        return []

    monkeypatch.setattr(operations, "list_audit", slow)
    monkeypatch.setattr(operations, "list_receipts", lambda *_: [])
    readings = pages.readings
    readings.audit()
    for later in (9.0, 1.5):  # 10 s after its end
        clock[0] += later
        readings.audit()
    assert reads == [1000.0, 1012.5]
    clock[0] += 10.5
    readings.drills()
    assert set(readings.kept) == {"drills"}


def test_a_stack_that_could_send_no_alert_needs_attention() -> None:
    daemon = DaemonStatus(name="postgres", address="-", version="17", pid=1, health="ready", memory_mb=1)
    up = operations.Status(daemons=[daemon], rollout=None, schema_version=1, fleet_size=2, jobs=[], passwords=[])
    rule = operations.AlertRule(
        name="StorageDatabaseDown",
        severity="critical",
        component="",
        category="",
        summary="",
        state="inactive",
        alerts=(),
        problem="",
    )
    assert attention.notices(up, [rule], (), ()) == []
    assert attention.notices(replace(up, daemons=[]), [], (), ()) == []
    cases: list[tuple[operations.Status, list[operations.AlertRule], str]] = [
        (replace(up, heartbeat_age=9999.0), [rule], "alerts are not delivered"),
        (up, [], "no alerting rules"),
        (up, [replace(rule, problem="duplicate series")], "duplicate series"),
    ]
    for status, rules, expected in cases:
        [notice] = attention.notices(status, rules, (), ())
        assert notice.level == "critical"
        assert expected in notice.text
    assert [each.level for each in attention.notices(up, None, (), ("Prometheus does not answer",))] == ["warning"]


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("<b>broken</b>")


def test_a_reading_that_fails_in_any_way_takes_nothing_else(
    pages: Pages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operations, "list_receipts", broken)
    monkeypatch.setattr(operations, "list_alerts", broken)  # which every page reads
    for _ in range(2):
        pages.readings.kept.clear()
        assert "drills cannot be read: RuntimeError(&#39;&lt;b&gt;broken&lt;/b&gt;&#39;)" in shown(pages, "backups")
        for path in ("", "alerts", "jobs", "runbooks/StorageDatabaseDown"):
            shown(pages, path)
    assert caplog.text.count("drills cannot be read") == 1


@pytest.mark.parametrize("answer", [[], {}, [1], [{"rules": [{}]}], [{"rules": [{"labels": 1, "alerts": [{}]}]}], None])
def test_rules_that_are_not_as_expected_are_named(pages: Pages, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(embedded, "outputs", lambda *_, **__: {"prometheus_url": "http://x", "alertmanager_url": ""})
    monkeypatch.setattr(PrometheusClient, "_answer", lambda *_: answer)
    page = shown(pages, "alerts")
    assert "alerts cannot be read" in page or "no alerting rules" in page


def test_a_page_that_fails_is_an_answer(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observatory.console.pages.runbook_pages", broken)
    for path, expected in (("runbooks/StorageDatabaseDown", 500), ("none", 404)):
        status, _, body = pages.answer(path, {})
        assert status == expected
        assert b"</html>" in body
        assert b"<b>" not in body


@pytest.mark.parametrize("release", recorded_releases(), ids=lambda release: release.directory.name)
def test_deployments_that_an_earlier_release_recorded_are_shown(
    pages: Pages, monkeypatch: pytest.MonkeyPatch, release: Recorded
) -> None:
    recorded = list(entries(release.directory / "state/rollout/local.journal.jsonl"))
    monkeypatch.setattr("observatory.operations.delivery_report.list_audit", lambda *_, **__: recorded)
    found = {entry.details["deployment"] for entry in recorded if "deployment" in entry.details}
    assert len(found) > 1
    for deployment in found:
        page = shown(pages, f"deployments/{deployment}")
        assert "Gates" in page
        assert ('class="steps"' in page) is ("canary from" in page or "blue-green from" in page)


def test_a_deployment_says_how_many_gates_it_leaves_out(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    details = {"deployment": "d1", "version": "v0.2.0", "verdict": "passed"}
    recorded = [Entry(id=str(n), at=1e9 + n, actor="a", event="gate", details=details) for n in range(SHOWN_GATES + 5)]
    monkeypatch.setattr("observatory.operations.delivery_report.list_audit", lambda *_, **__: recorded)
    assert f"The newest {SHOWN_GATES} of {SHOWN_GATES + 5} evaluations" in shown(pages, "deployments/d1")
    del recorded[5:]
    pages.readings.kept.clear()
    assert "evaluations." not in shown(pages, "deployments/d1")


def test_each_alert_has_a_runbook_page(pages: Pages) -> None:
    for alert in ALERTS:
        page = shown(pages, f"runbooks/{alert.name}")
        assert "Remedy" in page
        assert 'href="javascript' not in page


def test_only_queries_of_panels_run(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []

    def query(_workspace: Any, expression: str, *, start: float, end: float, step: float) -> list[Any]:
        asked.append((expression, (end - start) / step))
        return []

    monkeypatch.setattr(operations, "query_metrics", query)
    for dashboard in DASHBOARDS:
        pages.answer(f"data/{dashboard.name}", {"range": "7d", "query": "up", "expression": "up"})
    declared = {
        query.expression.split("[")[0] for each in DASHBOARDS for p in each.panels("local") for query in p.queries
    }
    declared |= {each.expression.split("[")[0] for dashboard in DASHBOARDS for each in dashboard.annotations}
    assert {expression.split("[")[0].replace('stack="local"', 'stack="$stack"') for expression, _ in asked} <= declared
    assert max(points for _, points in asked) <= charts.POINTS
    pages.answer("data/overview", {"range": "9999999d"})
    assert max(points for _, points in asked) <= charts.RANGES[charts.DEFAULT_RANGE] / charts.STEP_S


def test_a_query_that_fails_takes_only_its_panel(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception | None] = [QueryRefusedError("duplicate series"), None, MetricsUnavailableError("timed out")]

    def query(_workspace: Any, _expression: str, **_: float) -> list[Any]:
        if errors and (error := errors.pop(0)):
            raise error
        return []

    monkeypatch.setattr(operations, "query_metrics", query)
    panels = len(list(DASHBOARDS[0].panels("local")))
    found = charts.read_dashboard(pages.workspace, DASHBOARDS[0], 900)
    assert found["problem"] == ""
    assert len(found["panels"]) == panels
    shown = [panel["empty"] for panel in found["panels"].values()]
    assert shown[0] == "duplicate series"
    assert shown.count("timed out") == 1

    errors[:] = [MetricsUnavailableError("timed out")] * panels
    found = charts.read_dashboard(pages.workspace, DASHBOARDS[0], 900)
    assert found["problem"] == "timed out"
    assert len(errors) == panels - charts.SILENT

    monkeypatch.setattr(charts, "READ_SECONDS", -1.0)
    assert "slow" in charts.read_dashboard(pages.workspace, DASHBOARDS[0], 900)["problem"]


def test_a_panel_says_how_many_series_it_leaves_out_and_a_missing_value_has_no_level(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def query(*_: Any, end: float, **__: float) -> list[Any]:
        return [{"metric": {"alertname": f"a{n:03}"}, "values": [[end, "NaN"]]} for n in range(charts.SERIES + 3)]

    monkeypatch.setattr(operations, "query_metrics", query)
    panels = charts.read_dashboard(pages.workspace, DASHBOARDS[0], 900)["panels"].values()
    rows = next(panel["rows"] for panel in panels if panel["kind"] == "table")
    assert len(rows) == charts.SERIES + 1
    assert rows[0][0] == "3 more are not shown"
    lines = next(panel["lines"] for panel in panels if panel["kind"] == "timeseries")
    assert "more are not shown" in lines[-1]["name"]
    assert {each["level"] for panel in panels for each in panel.get("values", ())} == {"none"}


def test_a_time_without_values_is_a_gap_in_the_line(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    def query(*_: Any, end: float, step: float, **__: float) -> list[Any]:
        return [{"metric": {}, "values": [[end - each * step, "1"] for each in (9, 8, 2, 1, 0)]}]

    monkeypatch.setattr(operations, "query_metrics", query)
    panels = charts.read_dashboard(pages.workspace, DASHBOARDS[0], 900)["panels"].values()
    lines = [line for panel in panels if panel["kind"] == "timeseries" for line in panel["lines"]]
    assert lines
    for line in lines:
        assert [y is None for y in line["y"]] == [False, False, True, False, False, False]
        assert line["x"] == sorted(line["x"])


def test_newest_values_are_of_now_in_every_range(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def query(_workspace: Any, _expression: str, *, start: float, end: float, **_: float) -> list[Any]:
        if start == end:
            asked.append(end)
        return []

    monkeypatch.setattr(operations, "query_metrics", query)
    begun = time.time()
    charts.read_dashboard(pages.workspace, DASHBOARDS[0], charts.RANGES["7d"])
    assert asked
    assert min(asked) >= begun


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        (0.0, "bytes", "0 B"),
        (1536.0, "bytes", "1.5 KiB"),
        (0.25, "seconds", "250 ms"),
        (90.0, "seconds", "90 s"),
        (7200.0, "seconds", "2 h"),
        (0.0144, "ratio", "1.44 %"),
        (12.5, "percent", "12.5 %"),
        (1234.0, "count", "1,234"),
        (float("nan"), "count", "-"),
        (float("inf"), "bytes", "inf B"),
    ],
)
def test_values_have_their_unit(number: float, unit: str, expected: str) -> None:
    assert text.value(number, unit) == expected


def test_the_worker_imports_no_server_and_the_server_no_pages() -> None:
    """The server runs all the time: what only pages need is the child's."""
    source = TEMPLATES.parent
    assert "jinja2" not in (source / "server.py").read_text()
    assert "starlette" not in (source / "pages.py").read_text()


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.j2")), ids=lambda file: file.name)
def test_pages_name_existing_commands(template: Path) -> None:
    """Those of modules are checked in `tests/house`."""
    named = re.findall(r'"(observatory [^"]+)"', template.read_text())
    assert [each for line in named for words in called(line) for each in problems(words)] == []
