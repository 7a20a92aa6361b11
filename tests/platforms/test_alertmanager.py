"""Silences that are refused before a request to Alertmanager."""

from __future__ import annotations

import pytest

from monitoring.matchers import Matcher, match_all
from observatory.platforms.alertmanager import OPERATORS, Alertmanager
from observatory.platforms.silence_terms import NEVER, SilenceRefusedError, SilenceUsageError, selection


@pytest.mark.parametrize("alert", [None, ""])
def test_a_whole_stack_cannot_be_silenced(alert: str | None) -> None:
    alertmanager = Alertmanager(url="http://127.0.0.1:1", stack="local")
    with pytest.raises(SilenceRefusedError, match="a whole stack cannot be silenced"):
        alertmanager.silence(fleet=None, alert=alert, seconds=60, created_by="me", reason="r")


def silence(alert: str | None = None, *matchers: str, seconds: float = 60, reason: str = "r") -> None:
    alertmanager = Alertmanager(url="http://127.0.0.1:1", stack="local")
    alertmanager.silence(fleet=None, alert=alert, matchers=matchers, seconds=seconds, created_by="me", reason=reason)


@pytest.mark.parametrize(
    "matchers",
    [
        ('fleet=~".*"',),
        ('severity!="critical"',),
        ('severity=~".+"',),
        ('severity=~"critical|warning|info"',),
        ('component=~"database|service|cache|monitoring"',),
        ('alertname!="StorageDatabaseDown"',),
        ('x=~""', 'y!~"z"'),
    ],
)
def test_matchers_that_cover_a_whole_stack_are_refused(matchers: tuple[str, ...]) -> None:
    with pytest.raises(SilenceRefusedError, match="a whole stack cannot be silenced"):
        silence(None, *matchers)


@pytest.mark.parametrize("name", [*NEVER, "Watchdog"])
def test_no_matcher_names_an_alert_that_must_page(name: str) -> None:
    for matcher in (f'alertname="{name}"', f'alertname=~"{name}|X"', f'alertname=~"{name[:-2]}.+"'):
        with pytest.raises(SilenceRefusedError, match=f"{name} cannot be silenced"):
            silence(None, matcher)
    with pytest.raises(SilenceRefusedError, match=f"{name} cannot be silenced"):
        silence(name, 'job="x"')


@pytest.mark.parametrize(
    ("alert", "matchers", "seconds", "reason", "error"),
    [
        (None, ("job=node",), 60, "r", "expected a name, an operator and a quoted value"),
        (None, ('job=~"("',), 60, "r", "is not a regular expression"),
        (None, ('stack="other"',), 60, "r", "is limited to its stack"),
        ("StorageInstanceDwn", (), 60, "r", "did you mean StorageInstanceDown"),
        ("StorageInstanceDown", (), 7 * 86_400 + 1, "r", "expected at most 7 days"),
        ("StorageInstanceDown", (), 0, "r", "expected at most 7 days"),
        ("StorageInstanceDown", (), 60, " ", "expected one line"),
        ("StorageInstanceDown", (), 60, "a\x1b[31m", "expected one line"),
        ("StorageInstanceDown", (), 60, "x" * 501, "expected one line"),
    ],
)
def test_a_silence_that_is_not_valid_is_refused(
    alert: str | None, matchers: tuple[str, ...], seconds: float, reason: str, error: str
) -> None:
    with pytest.raises(SilenceUsageError, match=error):
        silence(alert, *matchers, seconds=seconds, reason=reason)


def silenced(labels: dict[str, str], *matchers: str, alert: str | None = None) -> bool:
    """Return whether a silence of these terms covers an alert of the stack `local`."""
    documents = selection("local", fleet=None, alert=alert, matchers=matchers)
    parsed = [
        Matcher(name=each["name"], operator=OPERATORS[each["isEqual"], each["isRegex"]], value=each["value"])  # type: ignore[arg-type]
        for each in documents
    ]
    return match_all(parsed, {"stack": "local", **labels})


WARNING = {"alertname": "StorageCacheMemoryHigh", "severity": "warning", "component": "cache", "category": "cache"}
ESCALATION = {
    "alertname": "StorageWarningUnattended",
    "severity": "critical",
    "component": "monitoring",
    "category": "platform",
}


@pytest.mark.parametrize(
    "matcher",
    [
        'alertname="StorageCacheMemoryHigh"',
        'alertname=~"StorageCache.*"',
        'category="cache"',
        'component="cache"',
        'severity="warning"',
    ],
)
def test_a_silence_by_a_label_of_the_rule_covers_the_escalation_of_its_warnings(matcher: str) -> None:
    escalation = {**ESCALATION, "escalated": WARNING["alertname"], "instance": "i"}
    assert silenced({**WARNING, "instance": "i"}, matcher)
    assert silenced(escalation, matcher)
    assert silenced(escalation, matcher, 'instance="i"')
    assert not silenced(escalation, matcher, 'instance="j"')
    other = {"alertname": "StorageDiskCritical", "severity": "critical", "component": "database"}
    assert not silenced(other, matcher)
    if matcher != 'severity="warning"':
        assert not silenced({**ESCALATION, "escalated": "StorageDiskWarning"}, matcher)


def test_a_silence_of_an_alert_covers_its_escalation_and_no_other() -> None:
    name = WARNING["alertname"]
    assert silenced(WARNING, alert=name)
    assert silenced({**ESCALATION, "escalated": name}, alert=name)
    assert not silenced({**ESCALATION, "escalated": "StorageDiskWarning"}, alert=name)
    critical = {"alertname": "StorageDiskCritical", "severity": "critical"}
    assert silenced(critical, alert="StorageDiskCritical")
    assert silenced(critical, 'severity="critical"')
    assert not silenced(WARNING, 'severity="critical"')
