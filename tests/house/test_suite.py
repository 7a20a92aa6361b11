"""The suite itself: a busy machine fails no test, and the longest files begin first."""

from __future__ import annotations

import re

import httpx
from hypothesis import HealthCheck, settings

from tests.conftest import LONGEST, ROOT
from tests.support.waiting import PATIENCE_S


def test_examples_are_the_same_in_each_run_and_none_has_a_deadline() -> None:
    current = settings()
    assert (current.deadline, current.derandomize) == (None, True)
    assert HealthCheck.too_slow in current.suppress_health_check


def test_requests_of_tests_have_a_generous_timeout() -> None:
    with httpx.Client() as client:
        assert set(client.timeout.as_dict().values()) == {PATIENCE_S}


def test_the_files_that_begin_first_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_no_test_changes_the_clock_of_the_process() -> None:
    """An event loop of another thread, as of a fixture's server, would sleep for as long as the clock jumped."""
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"""setattr\((time,|["']time\.)""", line)
    ]
    assert found == [], "use tests.support.clock.own_clock"
