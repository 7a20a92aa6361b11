"""Parts that are killed or away under load: the service recovers by itself, and what it acknowledged is stored.

How many seconds it takes is `make bench`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.faults import Stack, kill, measure, pid_of, stop_temporarily
from observatory.runtime import Sandbox
from tests.stack.test_monitoring import sandbox
from tests.stack.test_up import client
from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.waiting import until

MEASUREMENTS = 4
LOAD_S = 8  # after a fault; a stopped cache is back after 5


@pytest.fixture(scope="module")
def target(stack: Checkout) -> Stack:
    names = ("service_url", "api_key", "ca_file", "database_url")
    return Stack(**{name: stack.output(name) for name in names})


@pytest.fixture(autouse=True)
def _all_well_again(stack: Checkout) -> Iterator[None]:
    """Leave a stack that is well."""
    yield
    well_again(stack)


def well_again(stack: Checkout) -> None:
    until(stack.is_well, "the stack to be well again", timeout_s=UP_TIMEOUT_S)


def killed(box: Sandbox) -> Callable[[], None]:
    return kill(pid_of(box, "valkey"))


def away(box: Sandbox) -> Callable[[], None]:
    return stop_temporarily(box, "valkey")


@pytest.mark.parametrize("fault", [killed, away])
def test_a_killed_or_missing_cache_causes_no_error(
    stack: Checkout, target: Stack, fault: Callable[[Sandbox], Callable[[], None]]
) -> None:
    failed: list[int] = []
    while 0 not in failed:  # a busy machine refuses requests for a while; what the fault causes comes each time
        if failed:
            well_again(stack)
        seen = measure(target, "cache", fault(sandbox(stack)), after_s=LOAD_S)
        assert seen.lost == 0
        failed.append(seen.failed)
        assert 0 in failed or len(failed) < MEASUREMENTS, failed


def test_a_killed_pooler_is_restarted_and_no_acknowledged_trace_is_lost(stack: Checkout, target: Stack) -> None:
    seen = measure(target, "pooler", kill(pid_of(sandbox(stack), "pgbouncer")), after_s=LOAD_S)
    with client(stack) as service:
        until(lambda: service.get("/v1/traces?limit=1").is_success, "an answer again", timeout_s=UP_TIMEOUT_S)
    assert seen.acknowledged > 0
    assert seen.lost == 0
