"""The generated files of Grafana's JSON, which are part of the package, and their form for one stack of a cluster."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from monitoring.dashboards.model import Dashboard
from monitoring.model import dashboard_uid
from monitoring.scrape_jobs import Platform

DIRECTORY = "generated"


def file_name(dashboard: str, platform: Platform) -> str:
    """Return the name of a dashboard's file below `generated`, e.g. `local/overview.json`."""
    return f"{platform}/{dashboard}.json"


def read(dashboard: Dashboard, platform: Platform) -> str:
    """Return a dashboard's JSON as it was generated."""
    file = resources.files(__package__) / DIRECTORY / file_name(dashboard.name, platform)
    return file.read_text(encoding="utf-8")


def of_stack(dashboard: Dashboard, platform: Platform, *, stack: str) -> str:
    """Return a dashboard's JSON for one stack: with its name in the identifier and the title, and a fixed variable.

    Stacks may share a Grafana, which refuses two dashboards with one identifier.
    """
    document: dict[str, Any] = json.loads(read(dashboard, platform))
    document |= {
        "uid": dashboard_uid(dashboard.name, stack=stack),
        "title": f"{document['title']} ({stack})",
        "tags": [*document["tags"], stack],
    }
    for link in document["links"]:
        link["tags"] = [*link["tags"], stack]
    variables = document["templating"]["list"]
    fixed = {"name": "stack", "type": "constant", "query": stack, "hide": 2, "skipUrlSync": True}
    document["templating"]["list"] = [fixed if each["name"] == "stack" else each for each in variables]
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
