"""Waiting while no version can be judged: the live one fails the same check, so what both need is ill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from observatory.delivery.environment import Environment, HostsError, LostDatabaseError, UnjudgedError
from observatory.delivery.fenced_rollout import FencedRollout, unless_aborted

Result = TypeVar("Result")
MOST_LOSSES = 3  # of the database, each in the middle of the same work: two may be a failover and a restart


def patiently(
    environment: Environment,
    check: Callable[[], Result],
    record: Callable[..., None],
    *,
    patience_s: Callable[[], float] | None = None,
) -> Result:
    """Return the result of a check, which is made again and again while it cannot be judged.

    Args:
        environment: of the delivery.
        check: raises UnjudgedError while no version can be judged.
        record: writes what was found to the journal.
        patience_s: returns for how many seconds since it could not be judged first; without it the gates' `deadline_s`.

    Raises:
        UnjudgedError: still no version can be judged.
        HostsError: the database was lost in `MOST_LOSSES` checks that it was there for at first, or in two until then.
    """
    clock, limits = environment.clock, environment.limits
    begun: float | None = None
    losses = 0
    while True:
        try:
            return check()
        except UnjudgedError as error:
            losses += isinstance(error, LostDatabaseError)
            begun = clock.now() if begun is None else begun
            over = clock.now() - begun >= (patience_s() if patience_s else limits.deadline_s)
            if losses == MOST_LOSSES or (over and losses > 1):
                raise HostsError(
                    f"the database was lost {losses} times while the version was started or verified, and accepted "
                    f"writes before each: {error}"
                ) from error
            if over:
                raise
            record("unjudged", reason=str(error))
        clock.sleep(limits.interval_s)


def attempt(rollout: FencedRollout, work: Callable[[], None], *, patience_s: Callable[[], float] | None = None) -> None:
    """Install or verify a version, patiently; without gates, users wait for a repair, and nothing else waits.

    Raises:
        HostsError: the version failed; UnjudgedError: the live one still fails, too.
        StepFailedError: an operator aborted the deployment.
    """

    def check() -> None:
        rollout.check_request()
        work()
        unless_aborted(rollout.read())  # the work takes some seconds, and the version gets traffic soon

    def record(event: str, **details: Any) -> None:
        rollout.was_ill = True
        rollout.record(event, **details)

    if rollout.deployment.gated:
        patiently(rollout.environment, check, record, patience_s=patience_s)
    else:
        work()
