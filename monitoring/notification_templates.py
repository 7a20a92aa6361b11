"""The text of notifications for Slack, PagerDuty and email: title, value, runbook and dashboard of each alert.

`templates/notifications.tmpl` has the templates. Labels and annotations can contain text of clients, so each receiver's
markup is escaped: `&`, `<` and `>` in Slack, which has mentions and links in angle brackets; in the HTML of mails by
Go's html/template. PagerDuty and the text of mails are plain; control characters, line breaks and characters that
change the direction of text become spaces. Only addresses of http and https become links.

On `local`, Alertmanager reads the file, and `amtool check-config` checks it. The Prometheus Operator gives Alertmanager
no file: there each setting has the definitions that it needs (`inline`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "templates" / "notifications.tmpl"
_DEFINITION = re.compile(r'\{\{ define "([\w.]+)"')
_USE = re.compile(r'template "([\w.]+)"')

Render = Callable[[str], str]
"""Returns the value of a setting for the name of a template."""


def template_file() -> str:
    """Return the file with all templates."""
    return FILE.read_text(encoding="utf-8")


def by_name(name: str) -> str:
    """Return the value of a setting whose template is in Alertmanager's file.

    Raises:
        KeyError: the file does not define it, so that the notification would fail.
    """
    _definitions()[name]
    return f'{{{{ template "{name}" . }}}}'


def inline(name: str) -> str:
    """Return the value of a setting with all the definitions that it needs; raises as `by_name`."""
    needed = dict.fromkeys(_needed(name))
    return "".join(_definitions()[each] for each in needed) + by_name(name)


def slack_content(render: Render) -> dict[str, Any]:
    """Return the content of a Slack message, in Alertmanager's keys."""
    return {
        "title": render("storage.slack.title"),
        "text": render("storage.slack.text"),
        "fallback": render("storage.slack.title"),
        "color": render("storage.slack.color"),
    }


def pagerduty_content(render: Render) -> dict[str, Any]:
    """Return the content of a PagerDuty event, in Alertmanager's keys."""
    return {
        "description": render("storage.pagerduty.summary"),
        "severity": render("storage.pagerduty.severity"),
        "class": "{{ .CommonLabels.category }}",
        "component": "{{ .CommonLabels.component }}",
        "group": "{{ .CommonLabels.stack }}",
        "details": {
            "firing": "{{ .Alerts.Firing | len }}",
            "resolved": "{{ .Alerts.Resolved | len }}",
            "alerts": render("storage.text"),
            "runbook": "{{ .CommonAnnotations.runbook_url }}",
            "dashboard": "{{ .CommonAnnotations.dashboard_url }}",
        },
        "links": [
            {"href": "{{ .CommonAnnotations.runbook_url }}", "text": "Runbook"},
            {"href": "{{ .CommonAnnotations.dashboard_url }}", "text": "Dashboard"},
        ],
    }


def email_content(render: Render) -> dict[str, Any]:
    """Return the content of a mail, in Alertmanager's keys."""
    return {
        "headers": {"Subject": render("storage.title")},
        "html": render("storage.email.html"),
        "text": render("storage.text"),
    }


@cache
def _definitions() -> dict[str, str]:
    """Return the definition of each template by its name: the text up to the next one."""
    text = template_file()
    starts = [(found.start(), found[1]) for found in _DEFINITION.finditer(text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    return {name: text[start:end].strip() for (start, name), end in zip(starts, ends, strict=True)}


def _needed(name: str) -> Iterator[str]:
    """Yield the names of a template and of those that it uses, each before its users."""
    for used in _USE.findall(_definitions()[name]):
        yield from _needed(used)
    yield name
