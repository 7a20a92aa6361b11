"""What a silence may cover, and for how long.

No silence covers the alerts of `NEVER` or the heartbeat, or a whole stack. A silence of a warning also covers its
escalation after half an hour, also where matchers select the warning by its name, severity, component or category.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from monitoring import ALERTS, Alert, Scope
from monitoring.alerts.delivery_of_alerts import DROPPED_BY_ESCALATION, WARNING_UNATTENDED, WATCHDOG
from monitoring.matchers import Matcher, match_all
from observatory.errors import REFUSED, WRONG_USAGE, ObservatoryError
from observatory.platforms.silence_matchers import operator_of
from observatory.settings import FleetName

MAX_SECONDS = 7 * 86_400  # of a silence; regular work has a maintenance window in the settings
MAX_REASON = 500  # characters
NEVER = (
    "StorageDatabaseDown",
    "StorageServiceDown",
    "StorageErrorBudgetFastBurn",
)  # alerts 1, 6, 15: users notice


class SilenceUsageError(ObservatoryError):
    """A matcher, a name, a duration or a reason of a silence is not valid; nothing was changed."""

    exit_code = WRONG_USAGE


class SilenceRefusedError(ObservatoryError):
    """The silence is not allowed; nothing was changed."""

    exit_code = REFUSED


def check_terms(seconds: float, reason: str) -> None:
    """Check the duration and the reason of a silence.

    Raises:
        SilenceUsageError: one of them is not valid.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise SilenceUsageError(
            f"a silence of {timedelta(seconds=seconds)}: expected at most {timedelta(seconds=MAX_SECONDS)}",
            remedy="For regular work set `maintenance` in the stack's settings.",
        )
    if not reason.strip() or len(reason) > MAX_REASON or not reason.isprintable():
        raise SilenceUsageError(
            f"the reason {reason[:80]!r}: expected one line of 1 to {MAX_REASON} characters, for the colleagues on call"
        )


def selection(
    stack: str, *, fleet: FleetName | None, alert: str | None, matchers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the matchers of a silence, as Alertmanager's API has them.

    Raises:
        SilenceRefusedError: they would cover the whole stack, or an alert of `NEVER`.
        SilenceUsageError: a matcher is not valid, or there is no such alert.
    """
    further = [_parsed(text) for text in matchers]
    _check_alert(alert, further)
    if not fleet and not alert and _covers_everything(further):
        # An empty name, as of an unset shell variable, names nothing.
        raise SilenceRefusedError(
            "a whole stack cannot be silenced: name a fleet, an alert, or a label with a value that they have"
        )
    selected = [Matcher(name="stack", value=stack), *([Matcher(name="fleet", value=fleet)] if fleet else [])]
    selected += _with_escalation([*([Matcher(name="alertname", value=alert)] if alert else []), *further])
    selected.append(Matcher(name="alertname", operator="!~", value="|".join((*NEVER, WATCHDOG.name))))
    return [_document(each) for each in selected]


def may_cover(stack: str, matchers: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a silence may cover an alert of a stack: its matchers are as Alertmanager's API has them.

    Labels that an alert has not by its rule may have any value.
    """
    given = [Matcher(name=each["name"], operator=operator_of(each), value=each["value"]) for each in matchers]
    return any(_may_match(given, {**_labels(each), "stack": stack}) for each in ALERTS)


def _may_match(matchers: Sequence[Matcher], labels: Mapping[str, str]) -> bool:
    try:
        return match_all((each for each in matchers if each.name in labels), labels)
    except ValueError:  # a regular expression that is valid in Go only
        return True


def _parsed(text: str) -> Matcher:
    try:
        matcher = Matcher.parse(text)
    except ValueError as error:
        raise SilenceUsageError(str(error)) from error
    if matcher.name == "stack":
        raise SilenceUsageError(f"matcher {text!r}: a silence is limited to its stack; choose it by --environment")
    return matcher


def _check_alert(alert: str | None, further: Sequence[Matcher]) -> None:
    """Check that the alert exists, and that neither it nor matchers of `alertname` name one of `NEVER`."""
    named = [each for each in further if each.name == "alertname" and not each.operator.startswith("!")]
    for name in (*NEVER, WATCHDOG.name):
        if alert == name or (named and match_all(named, {"alertname": name})):
            why = "its end is reported as the end of monitoring" if name == WATCHDOG.name else "users are affected"
            raise SilenceRefusedError(f"{name} cannot be silenced: {why}")
    names = {each.name for each in ALERTS}
    if alert and alert not in names:
        close = difflib.get_close_matches(alert, names, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SilenceUsageError(f"no alert {alert!r}{hint}", remedy="docs/runbooks has a page for each alert.")


def _covers_everything(matchers: Sequence[Matcher]) -> bool:
    """Return whether matchers also match an alert without labels, or every alert that can be silenced."""
    # An alert of severity `none`, such as InfoInhibitor, has no receiver.
    silenceable = [each for each in ALERTS if each.name not in NEVER and each.severity != "none"]
    return all(match_all(matchers, _labels(each)) for each in silenceable) or match_all(matchers, {})


def _with_escalation(given: Sequence[Matcher]) -> list[Matcher]:
    """Return matchers that also match the escalation of the warnings that the given ones match.

    The escalation has other values of some labels than the warning: matchers of those become the names of their alerts.
    """
    fixed = [each for each in given if each.name in DROPPED_BY_ESCALATION]
    found = [each for each in ALERTS if match_all(fixed, _labels(each))]
    names = [each.name for each in found if each.name not in (*NEVER, WATCHDOG.name)]
    warnings = [each.name for each in found if each.severity == "warning"]
    if not fixed or not warnings or WARNING_UNATTENDED.name in names:
        return list(given)
    return [
        Matcher(name="alertname", operator="=~", value="|".join((*names, WARNING_UNATTENDED.name))),
        Matcher(name="escalated", operator="=~", value="|".join((*warnings, ""))),
        *(each for each in given if each not in fixed),
    ]


def _labels(alert: Alert) -> dict[str, str]:
    """Return the labels that an alert has by its rule."""
    return {"alertname": alert.name, **alert.labels(Scope(stack="", runbooks=""))}


def _document(matcher: Matcher) -> dict[str, Any]:
    """Return a matcher as Alertmanager's API has it."""
    return {
        "name": matcher.name,
        "value": matcher.value,
        "isRegex": "~" in matcher.operator,
        "isEqual": not matcher.operator.startswith("!"),
    }
