"""A version that locks the tables is blamed for it; what others lock is not blamed on it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from observatory.database.errors import RowsLockedError, UnreachableError
from observatory.delivery.environment import HostsError, UnjudgedError
from observatory.platforms.live_comparison import judged
from observatory.platforms.place import Place

LIVE = Place(name="blue", url="http://127.0.0.1:1")


def found(error: Exception, *, tested: str | None = "green v0.2.0") -> HostsError:
    def attempt() -> None:
        raise error

    rows: Any = contextlib.nullcontext
    with pytest.raises(HostsError) as caught:
        judged(attempt, LIVE, rows, tested=tested)
    return caught.value


def test_a_version_whose_sessions_alone_hold_the_locks_has_failed() -> None:
    error = found(RowsLockedError("the tables are locked: pid 7", ["storage-service green v0.2.0"]))
    assert not isinstance(error, UnjudgedError)
    assert str(error) == "sessions of the version itself hold locks: the tables are locked: pid 7"


@pytest.mark.parametrize(
    "applications",
    [(), ("psql",), ("storage-service green v0.1.0",), ("storage-service green v0.2.0", "storage-service blue v0.2.0")],
)
def test_locks_of_others_are_not_blamed_on_the_version(applications: tuple[str, ...]) -> None:
    error = found(RowsLockedError("the tables are locked: pid 7", applications))
    assert isinstance(error, UnjudgedError)
    assert "pid 7" in str(error)


def test_no_version_is_blamed_where_its_sessions_cannot_be_told_apart_or_the_database_is_away() -> None:
    locked = RowsLockedError("the tables are locked", ["storage-service green v0.2.0"])
    assert isinstance(found(locked, tested=None), UnjudgedError)
    assert isinstance(found(UnreachableError("no server")), UnjudgedError)
