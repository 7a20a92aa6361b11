"""The console of a running stack: each page has what the commands print, and it comes back when it was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from monitoring.dashboards import DASHBOARDS
from observatory.operations import DaemonStatus
from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.waiting import until


@pytest.fixture
def session(stack: Checkout) -> Iterator[httpx.Client]:
    """A client that has opened the console; its addresses are below the session's path."""
    link = stack.run("console").stdout.strip()
    assert link.startswith(stack.output("console_url"))
    with httpx.Client(trust_env=False) as client:
        answer = client.get(link)
        client.base_url = httpx.URL(link).join(answer.headers["set-cookie"].partition("Path=")[2].partition(";")[0])
        yield client
        assert client.get(link).status_code == 403  # it works once


def test_pages_show_the_stack(stack: Checkout, session: httpx.Client) -> None:
    overview = session.get("").text
    for daemon in stack.well_status()["daemons"]:
        assert f'<th scope="row">{daemon["name"]}</th>' in overview
    assert session.get("migrations").text.count("applied") >= stack.well_status()["schema_version"]
    for backup in stack.json("backup", "list"):
        assert backup["label"] in session.get("backups").text
    for job in stack.json("scheduler", "list"):
        assert job["name"] in session.get("jobs").text
    assert "StorageDatabaseDown" in session.get("alerts").text
    for page in ("deployments", "audit", "runbooks/StorageDatabaseDown"):
        assert session.get(page).status_code == 200


def test_charts_have_values_of_the_stack(session: httpx.Client) -> None:
    def read(name: str) -> dict[str, Any]:
        """Return the panels of a dashboard, once Prometheus was quick enough for all of them."""
        found: dict[str, Any] = {}

        def is_whole() -> bool:
            found.update(session.get(f"data/{name}?range=15m").json())
            return bool(found["problem"] == "")

        until(is_whole, f"all panels of {name}", timeout_s=UP_TIMEOUT_S)
        return dict(found["panels"])

    def stats() -> list[str]:
        shown = [panel for panel in read("overview").values() if panel["kind"] == "stat"]
        return [each["text"] for panel in shown for each in panel.get("values", ())]

    for dashboard in DASHBOARDS:
        assert len(read(dashboard.name)) == len(list(dashboard.panels("local")))
    until(lambda: "up" in stats(), "a value of the stack", timeout_s=UP_TIMEOUT_S)


def test_a_killed_console_comes_back(stack: Checkout) -> None:
    def console() -> DaemonStatus:  # not by the command: it fails while the console is away
        [found] = [each for each in stack.status().daemons if each.name == "console"]
        return found

    before = console()
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)
    until(
        lambda: console().pid not in (None, before.pid) and console().health == "ready",
        "the watcher to start the console",
        timeout_s=UP_TIMEOUT_S,
    )
