"""What an interrupted plan of the program raises."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from observatory.database import ping
from observatory.delivery.environment import HostsError, LostDatabaseError, UnjudgedError
from observatory.documents.rollout import FileRolloutStore
from observatory.engines.embedded import EngineError, Interrupted
from observatory.platforms.local.hosts import LocalHosts


def hosts(tmp_path: Path, error: Exception) -> LocalHosts:
    def plan() -> Any:
        raise error

    unused: Any = None
    return LocalHosts(
        rollout=FileRolloutStore(tmp_path),
        ports={},
        sandbox=unused,
        preview=unused,
        plan=plan,
        up=lambda: None,
        administrator=lambda: "",
    )


def test_an_interrupted_plan_is_an_interruption_and_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        hosts(tmp_path, Interrupted("interrupted by SIGTERM")).changes()


def test_a_failed_plan_is_a_failure_of_the_hosts(tmp_path: Path) -> None:
    with pytest.raises(HostsError, match="cannot be planned: the program is wrong"):
        hosts(tmp_path, EngineError("the program is wrong")).changes()


def test_an_installation_that_loses_the_database_leaves_the_fleet_stopped_but_not_in_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, stopped = ping.Watched(accepted_at_first=True, accepted_writes=lambda: False), list[str]()
    monkeypatch.setattr(ping, "watched", lambda _conninfo: contextlib.nullcontext(found))
    monkeypatch.setattr(LocalHosts, "stop", lambda _self, fleet, *, patient: stopped.append(fleet))  # noqa: ARG005
    failing = hosts(tmp_path, EngineError("it does not start"))
    for repair in (True, False):
        assert stopped == []
        with pytest.raises(LostDatabaseError):
            failing.install("green", repair=repair)
    assert stopped == ["green"]


@pytest.mark.parametrize(
    ("at_first", "at_the_end", "expected"),
    [(True, True, HostsError), (True, False, LostDatabaseError), (False, False, UnjudgedError)],
)
def test_a_failure_is_judged_by_when_the_database_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_first: bool, at_the_end: bool, expected: type[HostsError]
) -> None:
    found = ping.Watched(accepted_at_first=at_first, accepted_writes=lambda: at_the_end)
    monkeypatch.setattr(ping, "watched", lambda _conninfo: contextlib.nullcontext(found))
    watching = hosts(tmp_path, EngineError("unused"))
    with pytest.raises(HostsError, match="it does not start") as caught, watching.judged():
        raise HostsError("it does not start")
    assert type(caught.value) is expected
    with pytest.raises(HostsError) as caught, watching.judged(UnjudgedError):
        raise HostsError("a row is missing, whatever the database does")
    assert type(caught.value) is HostsError
