"""Silences that are refused before a request to Alertmanager."""

from __future__ import annotations

import pytest

from observatory.platforms.alertmanager import Alertmanager
from observatory.platforms.silence_terms import NEVER, SilenceRefusedError, SilenceUsageError


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
