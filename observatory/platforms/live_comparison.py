"""Before a version is blamed for what an ill dependency explains as well, the live fleet gets the same check."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from observatory.delivery.environment import HostsError, UnjudgedError
from observatory.platforms.place import Place

if TYPE_CHECKING:
    from observatory.database.verification_rows import MarkedRows

REPETITIONS, REPEATED_SECONDS = 30, 6.0  # at most, of a check through the live fleet
Check = Callable[[Place, "MarkedRows"], None]
Result = TypeVar("Result")


class UnansweredError(HostsError):
    """A valid request got no answer, a 5xx or 429: an ill database or balancer explains that as well as the version.

    Attributes:
        check: the same check, of any place and with rows of its own; raises HostsError where the place fails it.
    """

    def __init__(self, message: str, check: Check) -> None:
        super().__init__(message)
        self.check = check


def proves_nothing(status: int) -> bool:
    """Return whether a status is one of an ill dependency, too."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS


def judged(
    attempt: Callable[[], Result],
    live: Place,
    marked_rows: Callable[[], AbstractContextManager[MarkedRows]],
    *,
    tested: str | None = None,
) -> Result:
    """Make an attempt with a version, and a second one where only that can decide.

    Args:
        attempt: raises UnansweredError where the version or a dependency failed, another HostsError where it was the
            version. It leaves nothing running that could make the live fleet ill.
        live: has the traffic of users.
        marked_rows: yields rows that are removed at the end of the block.
        tested: fleet and version, as sessions of the database name them; None where they cannot be distinguished.

    Raises:
        HostsError: the version failed, twice where an ill dependency could explain it, and the live fleet did not.
        UnjudgedError: the live fleet fails, too, or the database does not answer.
    """
    from observatory.database import DatabaseError  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.errors import RowsLockedError  # noqa: PLC0415

    for last in (False, True):
        try:
            return attempt()
        except DatabaseError as error:
            if tested and isinstance(error, RowsLockedError) and _all_of(tested, error.applications):
                raise HostsError(f"sessions of the version itself hold locks: {error}") from error
            raise UnjudgedError(f"no version can be judged now: the database does not answer: {error}") from error
        except UnansweredError as error:
            if illness := _illness_of(live, error.check, marked_rows):
                raise UnjudgedError(
                    f"no version can be judged now, both fleets are ill: {live.name}, which is live, {illness}; and "
                    f"{error}. Repair what both need, such as the database"
                ) from error
            if last:
                raise
    raise AssertionError  # the second attempt has returned or raised


def _all_of(tested: str, applications: Collection[str]) -> bool:
    """Return whether sessions are known, and all of them are of one fleet and version: `NAME FLEET VERSION`."""
    return bool(applications) and all(name.endswith(f" {tested}") for name in applications)


def _illness_of(live: Place, check: Check, marked_rows: Callable[[], AbstractContextManager[MarkedRows]]) -> str:
    """Return how the live fleet fails a check, which is repeated; empty where it passes each time."""
    from observatory.database import DatabaseError  # noqa: PLC0415 - psycopg only where it is used

    if not live.is_ready():
        return "is not ready"
    until = time.monotonic() + REPEATED_SECONDS
    for number in range(1, REPETITIONS + 1):
        try:
            with marked_rows() as rows:
                check(live, rows)
        except (HostsError, DatabaseError) as error:
            return f"failed the same check {f'at repetition {number}' if number > 1 else 'at once'}: {error}"
        if time.monotonic() > until:
            break
    return ""
