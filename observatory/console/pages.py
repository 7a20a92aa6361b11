"""The pages of the console: each reads what it shows and renders a template."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from typing import Any

import jinja2
import markupsafe
from markdown_it import MarkdownIt

from monitoring import runbook_pages
from monitoring.dashboards import DASHBOARDS, Dashboard
from observatory import __version__, operations
from observatory.console import attention, charts, deployments, text
from observatory.console.readings import Readings
from observatory.documents.event_text import event_phase, event_text
from observatory.settings import FLEETS

LOG = logging.getLogger("observatory.console")
HTML, JSON = "text/html; charset=utf-8", "application/json"
AUDIT_ROWS = 100  # of a page
NAVIGATION = (
    ("", "Overview"),
    ("deployments", "Deployments"),
    ("alerts", "Alerts"),
    ("dashboards/overview", "Dashboards"),
    ("backups", "Backups"),
    ("migrations", "Migrations"),
    ("jobs", "Jobs"),
    ("audit", "Audit"),
)
Result = tuple[int, str, bytes]
Context = dict[str, Any]


class NotFoundError(operations.ObservatoryError):
    """There is no such page, deployment, runbook or dashboard."""


@dataclass(kw_only=True)
class _Request:
    """The words of a path, and the parameters after the question mark."""

    words: list[str]
    query: Mapping[str, str]

    @property
    def root(self) -> str:
        """The relative address of the first page: a page does not know the session's path."""
        return "../" * (len(self.words) - 1) or "./"


@dataclass
class Pages:
    """The pages of one stack."""

    workspace: operations.Workspace
    readings: Readings = field(init=False)

    def __post_init__(self) -> None:
        """Keep readings from page to page."""
        self.readings = Readings(workspace=self.workspace)

    def answer(self, path: str, query: Mapping[str, str]) -> Result:
        """Return the status, the type and the content of a page; a failure is a page, too."""
        request = _Request(words=path.split("/"), query=query)
        try:
            if request.words[0] == "data":
                return HTTPStatus.OK, JSON, json.dumps(self._data(request)).encode()
            return HTTPStatus.OK, HTML, self._page(request)
        except NotFoundError as error:
            return HTTPStatus.NOT_FOUND, HTML, self._failed(request, "Not found", str(error))
        except Exception as error:
            LOG.exception("the page %s failed", path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, HTML, self._failed(request, "This page failed", repr(error))

    def _page(self, request: _Request) -> bytes:
        pages: dict[str, Callable[[_Request], tuple[str, Context]]] = {
            "": self._overview,
            "deployments": self._deployments,
            "alerts": self._alerts,
            "runbooks": self._runbook,
            "dashboards": self._dashboard,
            "backups": self._backups,
            "migrations": self._migrations,
            "jobs": self._jobs,
            "audit": self._audit,
        }
        page = pages.get(request.words[0])
        nested = {"deployments": (1, 2), "runbooks": (2,), "dashboards": (2,)}.get(request.words[0], (1,))
        if page is None or len(request.words) not in nested:
            raise NotFoundError("There is no such page.")
        template, context = page(request)
        return self._render(template, request, context)

    def _failed(self, request: _Request, title: str, message: str) -> bytes:
        """Return a page that reads nothing: what it would read may be what failed."""
        return self._render("failed.html.j2", request, {"title": title, "message": message}, ())

    def _render(
        self, template: str, request: _Request, context: Context, rules: Sequence[operations.AlertRule] | None = None
    ) -> bytes:
        rules = rules if rules is not None else self.readings.alerts().value or []
        common = {
            "stack": self.workspace.stack,
            "version": __version__,
            "root": request.root,
            "here": request.words[0],
            "navigation": NAVIGATION,
            "firing": len(attention.firing(rules)),
            "at": datetime.now(UTC),
            "environment": "" if self.workspace.stack == "local" else f" -e {self.workspace.stack}",
        }
        return self._templates.get_template(template).render(common | context).encode()

    @cached_property
    def _templates(self) -> jinja2.Environment:
        made = jinja2.Environment(
            loader=jinja2.PackageLoader("observatory.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.filters |= {
            "clock": text.clock,
            "ago": text.ago,
            "duration": text.duration,
            "size": text.size,
            "moment": text.moment,
            "breakable": _breakable,
            "with_code": _with_code,
            "heading": _heading,
            "event_text": lambda entry: event_text(entry.event, entry.details),
            "event_phase": lambda entry: event_phase(entry.event, entry.details).value,
        }
        return made

    def _overview(self, _request: _Request) -> tuple[str, Context]:
        status, rules, deliveries = self.readings.status(), self.readings.alerts(), self.readings.deliveries()
        found, recorded = status.value, deliveries.value or []
        problems = dict.fromkeys((*status.problems, *rules.problems, *deliveries.problems))
        listed = attention.notices(found, rules.value, recorded, tuple(problems))
        return "overview.html.j2", {
            "title": "Overview",
            "status": found,
            "notices": listed,
            "level": listed[0].level if listed else "ok",
            "fleets": FLEETS,
            "deployment": deployments.current(found, recorded) if found else None,
            "panels": _panels("overview", {"Requests", "Failed writes", "Latency"}),
        }

    def _deployments(self, request: _Request) -> tuple[str, Context]:
        found = self.readings.deliveries()
        listed = list(reversed(found.value or []))
        if len(request.words) == 1:
            context: Context = {"title": "Deployments", "reading": found, "deliveries": listed}
            status = self.readings.status().value
            context["deployment"] = deployments.current(status, found.value or []) if status else None
            return "deployments.html.j2", context
        shown = next((each for each in listed if each.id == request.words[1]), None)
        if shown is None:
            raise NotFoundError(f"There is no deployment {request.words[1]} in the history.")
        status = self.readings.status().value
        context = {"title": f"{shown.version} to {shown.target}", "deployment": deployments.recorded(shown, status)}
        return "deployment.html.j2", context

    def _alerts(self, _request: _Request) -> tuple[str, Context]:
        rules = self.readings.alerts()
        return "alerts.html.j2", {"title": "Alerts", "reading": rules, "silences": self.readings.silences()}

    def _runbook(self, request: _Request) -> tuple[str, Context]:
        page = runbook_pages().get(request.words[1])
        if page is None:
            raise NotFoundError(f"There is no runbook {request.words[1]}.")
        rules = self.readings.alerts().value or []
        rule = next((each for each in rules if each.name == request.words[1]), None)
        # HTML in Markdown stays text; links of the pages lead to files of the repository, which are not here.
        shown = MarkdownIt("commonmark", {"html": False}).disable(["link", "autolink", "image"]).render(page)
        return "runbook.html.j2", {"title": request.words[1], "page": markupsafe.Markup(shown), "rule": rule}  # noqa: S704 - see above

    def _dashboard(self, request: _Request) -> tuple[str, Context]:
        dashboard = charts.dashboard_named(request.words[1])
        if dashboard is None:
            raise NotFoundError(f"There is no dashboard {request.words[1]}.")
        return "dashboard.html.j2", {
            "title": _heading(dashboard),
            "dashboard": dashboard,
            "dashboards": DASHBOARDS,
            "sections": _sections(dashboard),
            "range": _range(request.query),
            "ranges": list(charts.RANGES),
        }

    def _data(self, request: _Request) -> Context:
        dashboard = charts.dashboard_named(request.words[1]) if len(request.words) > 1 else None
        if dashboard is None:
            raise NotFoundError("There is no such dashboard.")
        return charts.read_dashboard(self.workspace, dashboard, charts.RANGES[_range(request.query)])

    def _backups(self, _request: _Request) -> tuple[str, Context]:
        backups, drills = self.readings.backups(), self.readings.drills()
        return "backups.html.j2", {"title": "Backups", "backups": backups, "drills": drills}

    def _migrations(self, _request: _Request) -> tuple[str, Context]:
        return "migrations.html.j2", {"title": "Migrations", "reading": self.readings.migrations()}

    def _jobs(self, _request: _Request) -> tuple[str, Context]:
        status = self.readings.status()
        jobs = status.value.jobs if status.value else []
        return "jobs.html.j2", {"title": "Jobs", "reading": status, "jobs": jobs}

    def _audit(self, request: _Request) -> tuple[str, Context]:
        found, wanted = self.readings.audit(), request.query.get("find", "").strip().lower()
        listed = [each for each in reversed(found.value or []) if not wanted or wanted in each.line.lower()]
        page = int(number) if (number := request.query.get("page", "0")).isdecimal() and len(number) < 6 else 0  # noqa: PLR2004
        return "audit.html.j2", {
            "title": "Audit",
            "reading": found,
            "entries": listed[page * AUDIT_ROWS : (page + 1) * AUDIT_ROWS],
            "total": len(listed),
            "page_number": page,
            "pages": -(-len(listed) // AUDIT_ROWS),
            "find": request.query.get("find", ""),
        }


def _heading(dashboard: Dashboard) -> str:
    """Return the title of a dashboard without the name that all of them begin with."""
    title = dashboard.title.rpartition(": ")[2]
    return title[:1].upper() + title[1:]


def _breakable(name: str) -> markupsafe.Markup:
    """Return the name of an alert, which a line may break between its words."""
    return markupsafe.Markup("<wbr>").join(re.findall(r"[A-Z]?[^A-Z]+|[A-Z]+", name))


def _with_code(words: str) -> markupsafe.Markup:
    """Return a text with its words in backticks as code."""
    code = markupsafe.Markup("<code>{}</code>")
    parts = words.split("`")
    return markupsafe.Markup("").join(code.format(each) if index % 2 else each for index, each in enumerate(parts))


def _range(query: Mapping[str, str]) -> str:
    given = query.get("range", "")
    return given if given in charts.RANGES else charts.DEFAULT_RANGE


def _sections(dashboard: Dashboard) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Return the titles of the sections with their panels and the panels' identifiers."""
    identifiers = {id(panel): charts.panel_id(index) for index, panel in enumerate(dashboard.panels("local"))}
    return [(each.title, [(identifiers[id(panel)], panel) for panel in each.panels]) for each in dashboard.on("local")]


def _panels(dashboard: str, titles: set[str]) -> list[tuple[str, Any]]:
    """Return some panels of a dashboard, with their identifiers."""
    found = charts.dashboard_named(dashboard)
    listed = [panel for _, panels in _sections(found) for panel in panels] if found else []
    return [(name, panel) for name, panel in listed if panel.title in titles]
