"""What silences cover, those that are refused before a request to Alertmanager, and answers that are not its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from monitoring.matchers import Matcher, match_all
from observatory.platforms.alertmanager import Alertmanager, AlertmanagerError
from observatory.platforms.silence_matchers import operator_of
from observatory.platforms.silence_terms import NEVER, SilenceRefusedError, SilenceUsageError, may_cover, selection


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
    parsed = [Matcher(name=each["name"], operator=operator_of(each), value=each["value"]) for each in documents]
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


def matcher(name: str, value: str, *, equal: bool = True, regex: bool = False) -> dict[str, object]:
    return {"name": name, "value": value, "isEqual": equal, "isRegex": regex}


@pytest.mark.parametrize(
    ("covers", "matchers"),
    [
        (True, [matcher("stack", "local")]),
        (True, [matcher("stack", "local|other", regex=True)]),
        (True, [matcher("stack", "other", equal=False)]),
        (True, [matcher("severity", "critical")]),
        (True, [matcher("alertname", ".+", regex=True)]),
        (True, [matcher("instance", "i")]),
        (True, [matcher("alertname", r"\pL+", regex=True)]),  # valid in Go only
        (False, [matcher("stack", "other")]),
        (False, [matcher("stack", "")]),
        (False, [matcher("alertname", "KubePodCrashLooping"), matcher("namespace", "other")]),
        (False, [matcher("alertname", "StorageDatabaseDown"), matcher("severity", "warning")]),
    ],
)
def test_silences_of_others_that_may_cover_the_stack_are_found(
    covers: bool,
    matchers: list[dict[str, object]],
) -> None:
    assert may_cover("local", matchers) is covers


@pytest.mark.parametrize("status", [200, 302, 401])
def test_an_answer_that_is_not_alertmanagers_is_an_error(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(status, text="<html>log in</html>"))
    alertmanager = Alertmanager(url="https://alertmanager.example", stack="local")
    with pytest.raises(AlertmanagerError, match=f"answered {status}.*log in"):
        alertmanager.silences()
    with pytest.raises(AlertmanagerError, match=f"answered {status}.*log in"):
        silence("StorageInstanceDown")


def test_a_silence_starts_at_once_also_where_alertmanagers_clock_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []

    def accept(*_: object, json: dict[str, str], **__: object) -> httpx.Response:
        sent.append(json)
        return httpx.Response(200, json={"silenceID": "1"})

    monkeypatch.setattr(httpx, "request", accept)
    before = datetime.now(UTC)
    silence("StorageInstanceDown", seconds=600)
    after = datetime.now(UTC)
    (document,) = sent
    begins, ends = (datetime.fromisoformat(document[name]) for name in ("startsAt", "endsAt"))
    assert begins < before - timedelta(minutes=4)
    assert before + timedelta(seconds=599) < ends <= after + timedelta(seconds=600)


def test_an_alert_that_only_a_time_interval_mutes_counts_as_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    def alert(name: str, **status: list[str]) -> dict[str, object]:
        return {"labels": {"alertname": name}, "status": {"silencedBy": [], "inhibitedBy": [], **status}}

    alerts = [
        alert("fires"),
        alert("also fires", mutedBy=[]),
        alert("muted", mutedBy=["maintenance"]),
        alert("silenced", silencedBy=["1"]),
        alert("inhibited", inhibitedBy=["2"]),
    ]
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(200, json=[{"labels": {}, "alerts": alerts}]))
    found = Alertmanager(url="https://alertmanager.example", stack="local").muted_alerts()
    assert [each["alertname"] for each in found] == ["muted", "silenced", "inhibited"]
