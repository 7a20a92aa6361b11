"""Waiting while no version can be judged: the live one fails the same check, so what both need is ill."""

from __future__ import annotations

from collections.abc import Callable

from observatory.delivery.environment import Environment, UnjudgedError
from observatory.delivery.fenced_rollout import FencedRollout


def patiently(
    environment: Environment,
    check: Callable[[], None],
    record: Callable[..., None],
    *,
    patience_s: Callable[[], float] | None = None,
) -> None:
    """Make a check, again and again while it cannot be judged.

    Args:
        environment: of the delivery.
        check: raises UnjudgedError while no version can be judged.
        record: writes what was found to the journal.
        patience_s: returns for how many seconds; without it the gates' `deadline_s`.

    Raises:
        UnjudgedError: still no version can be judged.
    """
    clock, limits = environment.clock, environment.limits
    begun = clock.now()
    while True:
        try:
            return check()
        except UnjudgedError as error:
            if clock.now() - begun >= (patience_s() if patience_s else limits.deadline_s):
                raise
            record("unjudged", reason=str(error))
        clock.sleep(limits.interval_s)


def verified(
    rollout: FencedRollout, verify: Callable[[], None], *, patience_s: Callable[[], float] | None = None
) -> None:
    """Verify what a deployment has installed; without gates, users wait for a repair, and nothing else waits.

    Raises:
        HostsError: the version failed; UnjudgedError: the live one still fails, too.
        StepFailedError: an operator aborted the deployment.
    """

    def check() -> None:
        rollout.check_request()
        verify()

    if rollout.deployment.gated:
        patiently(rollout.environment, check, rollout.record, patience_s=patience_s)
    else:
        verify()
