"""Why a silence covers no alert, as after a typing error: matchers that no alert of the stack can have."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence

from monitoring import ALERTS, Alert, Scope
from monitoring.matchers import Matcher, match_all
from observatory.platforms.silence_terms import NEVER
from observatory.settings import FleetName

FIXED = ("alertname", "severity", "component", "category")  # labels whose values only rules have
SHOWN_VALUES = 10
Values = Callable[[str], Collection[str]]


def unreached(*, fleet: FleetName | None, alert: str | None, matchers: Sequence[str], values: Values) -> Iterator[str]:
    """Yield why a silence of these terms covers no alert; they are valid.

    Args:
        fleet: of the alerts.
        alert: name of the alert.
        matchers: of further labels.
        values: returns the values that a label has now, none where they are not known.
    """
    named = {"fleet": fleet, "alertname": alert}
    given = [Matcher(name=name, value=value) for name, value in named.items() if value]
    given += [Matcher.parse(text) for text in matchers]
    required = list(dict.fromkeys(each.name for each in given if not each.matches({})))  # labels that it must have
    problems = [problem for name in required if (problem := _problem(name, _of(given, name), values))]
    yield from problems
    if not problems and not any(_may_match(given, required, each) for each in ALERTS if each.name not in NEVER):
        names = ", ".join(required)
        wanted = next((each for each in ALERTS if each.name == alert), None)
        has = f"; {alert} has {', '.join(sorted(_names(wanted)))}" if wanted else ""
        yield f"no alert that can be silenced has the values of all labels ({names}){has}"


def _problem(name: str, matchers: Sequence[Matcher], values: Values) -> str:
    """Return why no alert has a label with a value that all its matchers match; empty if one may."""
    names = {label for alert in ALERTS for label in _names(alert)}
    if name not in names:
        return f"no alert has the label {name!r}{_nearest(name, names)}"
    fixed = name in FIXED
    known = {_labels(alert)[name] for alert in ALERTS} if fixed else set(values(name))
    if not known or any(match_all(matchers, {name: value}) for value in known):
        return ""
    if len(matchers) == 1:
        what = f"no alert has {matchers[0]}" if fixed else f"nothing has {matchers[0]} now"
        return f"{what}{_nearest(matchers[0].value, known)}"
    listed = " and ".join(str(each) for each in matchers)
    return f'no value matches {listed}; a matcher of several values is {name}=~"A|B"'


def _of(matchers: Sequence[Matcher], name: str) -> list[Matcher]:
    return [each for each in matchers if each.name == name]


def _nearest(given: str, known: Collection[str]) -> str:
    if close := difflib.get_close_matches(given, known, 1):
        return f"; did you mean {close[0]}?"
    shown = ", ".join(sorted(known)[:SHOWN_VALUES])
    return f"; there {'is' if len(known) == 1 else 'are'} {shown}{', …' if len(known) > SHOWN_VALUES else ''}"


def _may_match(given: Sequence[Matcher], required: Sequence[str], alert: Alert) -> bool:
    """Return whether an alert has the labels that are required, and its rule's labels match."""
    labels = _labels(alert)
    return set(required) <= _names(alert) and match_all((each for each in given if each.name in labels), labels)


def _names(alert: Alert) -> set[str]:
    """Return the names of the labels that an alert may have."""
    firing = {name for scenario in alert.scenarios for found in scenario.fires for name in found.labels}
    return {*_labels(alert), *firing}


def _labels(alert: Alert) -> dict[str, str]:
    return {"alertname": alert.name, **alert.labels(Scope(stack="", runbooks=""))}
