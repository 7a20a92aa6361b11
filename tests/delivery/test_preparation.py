"""What is refused or tested before a deployment starts."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.environment import LostDatabaseError, UnjudgedError
from observatory.delivery.errors import (
    DeliveryRefusedError,
    DeploymentPausedError,
    RolledBackError,
    TrialFailedError,
    UnjudgedVersionError,
)
from observatory.delivery.request import DeploymentRequest, canary_weights
from observatory.documents.event_text import event_text
from observatory.errors import REFUSED
from tests.delivery.environment import MEMBERS, OLD, SIZE, Killed, Simulation, simulation
from tests.delivery.faults import blue_green, failing, raise_at, rolling


def test_pre_deployment_tests_run_before_anything_changes_and_are_recorded() -> None:
    stack = simulation()
    done = deploy(stack.environment(), blue_green())
    assert stack.tried == [("green", "v0.2.0")]
    assert done.deployment is not None
    assert done.deployment.tests == "passed"
    assert [event for event, _ in stack.events][:3] == ["tests-passed", "start", "install"]


def test_what_the_tests_could_not_check_is_named() -> None:
    stack = simulation()
    stack.unchecked = ("not checked: growth: only 9 requests in 10 s",)
    deploy(stack.environment(), blue_green())
    event, details = stack.events[0]
    assert (event, details["unchecked"]) == ("tests-passed", ["not checked: growth: only 9 requests in 10 s"])
    assert event_text(event, details) == (
        "pre-deployment tests of v0.2.0 passed; not checked: growth: only 9 requests in 10 s"
    )


def test_failed_pre_deployment_tests_change_nothing() -> None:
    stack = simulation(fault=failing("test", once=True))
    before = stack.store.document
    with pytest.raises(
        TrialFailedError, match=r"v0\.2\.0 failed its pre-deployment tests, no fleet was changed: test failed"
    ):
        deploy(stack.environment(), blue_green())
    assert stack.store.document == before
    assert (stack.live, set(stack.runs.values())) == ({"blue": 100, "green": 0}, {OLD})
    assert [event for event, _ in stack.events] == ["tests-failed"]


def unjudged(place: str, stack: Simulation, *, until: float) -> None:
    """Let a check find both fleets ill until a time."""

    def fault(where: str) -> None:
        if where == place and stack.time < until:
            raise UnjudgedError("both fleets are ill")

    stack.fault = fault


def test_tests_wait_while_both_fleets_are_ill_and_then_refuse_without_blaming_the_version() -> None:
    stack = simulation()
    unjudged("test", stack, until=30)
    assert deploy(stack.environment(), blue_green()).fleet("green").weight == 100
    assert [event for event, _ in stack.events][5:8] == ["unjudged", "tests-passed", "start"]
    stack = simulation()
    unjudged("test", stack, until=1000)
    before = stack.store.document
    with pytest.raises(
        UnjudgedVersionError, match=r"not tested to the end, no fleet was changed: both fleets"
    ) as caught:
        deploy(stack.environment(), blue_green())
    assert caught.value.exit_code == REFUSED
    assert (stack.store.document, stack.events[-1][0]) == (before, "tests-unjudged")


@pytest.mark.parametrize("work", ["install", "verify"])
def test_a_target_that_cannot_be_judged_waits_without_traffic(work: str) -> None:
    stack = simulation()
    unjudged(work, stack, until=1000)
    with pytest.raises(DeploymentPausedError, match="is on green without traffic: both fleets are ill"):
        deploy(stack.environment(), blue_green())
    assert (stack.live["green"], stack.time) == (0, 60)
    stack.time = 1000
    assert deploy(stack.environment(), blue_green()).fleet("green").weight == 100


@pytest.mark.parametrize("request_", [blue_green(), rolling()], ids=["blue-green", "rolling"])
def test_an_installation_is_repeated_when_the_database_is_back(request_: DeploymentRequest) -> None:
    stack = simulation(minimum=SIZE - 1)
    unjudged("install", stack, until=20)
    done = deploy(stack.environment(), request_).deployment
    assert done is not None
    assert done.status == "promoted"
    assert "unjudged" in dict(stack.events)
    assert stack.time >= 20


def losing_the_database(place: str, stack: Simulation, *, times: int) -> None:
    """Let the database be lost in the middle of the first checks; between them it is down for one more check."""
    calls = itertools.count()

    def fault(where: str) -> None:
        if where != place or (call := next(calls)) >= 2 * times:
            return
        raise UnjudgedError("the database is down") if call % 2 else LostDatabaseError("it went down meanwhile")

    stack.fault = fault


@pytest.mark.parametrize("request_", [blue_green(), rolling()], ids=["blue-green", "rolling"])
@pytest.mark.parametrize("work", ["install", "verify"])
def test_a_version_that_takes_the_database_down_again_and_again_is_rolled_back(
    work: str, request_: DeploymentRequest
) -> None:
    stack = simulation(minimum=SIZE - 1)
    losing_the_database(work, stack, times=3)
    with pytest.raises(RolledBackError, match=r"the database was lost 3 times .* it went down meanwhile"):
        deploy(stack.environment(), request_)
    assert stack.live == {"blue": 100, "green": 0}
    stack = simulation(minimum=SIZE - 1)
    losing_the_database(work, stack, times=2)
    done = deploy(stack.environment(), request_).deployment
    assert done is not None
    assert done.status == "promoted"


def test_two_losses_are_enough_where_the_attempts_outlast_the_patience() -> None:
    stack, calls = simulation(), itertools.count()

    def fault(where: str) -> None:
        if where == "install" and next(calls) < 2:
            stack.time += 150.0  # until the start limit
            raise LostDatabaseError("it went down meanwhile")

    stack.fault = fault
    with pytest.raises(RolledBackError, match="the database was lost 2 times"):
        deploy(stack.environment(), blue_green())


def test_a_version_that_takes_the_database_down_in_each_of_its_tests_fails_them() -> None:
    stack = simulation()
    losing_the_database("test", stack, times=3)
    with pytest.raises(TrialFailedError, match="no fleet was changed: the database was lost 3 times"):
        deploy(stack.environment(), blue_green())


def test_a_target_that_may_have_made_the_source_ill_is_stopped_soon() -> None:
    stack = simulation(minimum=0)
    unjudged("verify", stack, until=1000)
    stack.each_sleep = lambda: stack.up.update(dict.fromkeys(MEMBERS["blue"], "rollback" in dict(stack.events)))
    with pytest.raises(RolledBackError, match="both fleets are ill"):
        deploy(stack.environment(), blue_green())
    assert "stopped" in dict(stack.events)
    assert stack.time < 45


def test_an_abort_ends_the_wait() -> None:
    stack = simulation()
    unjudged("verify", stack, until=1000)

    def abort() -> None:
        send_control_request(stack.environment(), "abort")

    stack.each_sleep = abort
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), blue_green())


def test_skipped_tests_are_recorded() -> None:
    stack = simulation(fault=failing("test", once=True))
    done = deploy(stack.environment(), blue_green(skip_tests=True))
    assert done.deployment is not None
    assert done.deployment.tests == "skipped"
    assert stack.events[0][0] == "tests-skipped"


def test_a_platform_without_pre_deployment_tests_requires_skip_tests() -> None:
    stack = simulation()
    environment = dataclasses.replace(stack.environment(), trial=None)
    with pytest.raises(DeliveryRefusedError, match="deploy with --skip-tests"):
        deploy(environment, blue_green())
    assert stack.store.history == []
    deploy(environment, blue_green(skip_tests=True))


def test_a_continued_deployment_does_not_repeat_the_pre_deployment_tests() -> None:
    stack = simulation(fault=raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), blue_green())
    stack.fault = failing("test", once=True)
    assert deploy(stack.environment(), blue_green()).green.weight == 100


@pytest.mark.parametrize("first", [0, 100, 101, -5])
def test_a_canary_out_of_range_is_refused(first: int) -> None:
    with pytest.raises(DeliveryRefusedError, match="between 1 and 99"):
        canary_weights(first, (25, 100))


def test_the_active_fleet_is_refused_as_target() -> None:
    with pytest.raises(DeliveryRefusedError, match="deploy to the idle fleet, green"):
        deploy(simulation().environment(), blue_green(target="blue"))


def test_drift_is_refused_unless_accepted() -> None:
    stack = simulation()
    stack.live = {"blue": 60, "green": 40}
    with pytest.raises(DeliveryRefusedError, match="are blue 60 %, green 40 %, expected blue 100 %, green 0 %"):
        deploy(stack.environment(), blue_green())
    assert stack.store.history == []
    deploy(stack.environment(), blue_green(accept_drift=True))
    assert stack.live["green"] == 100


def test_a_second_version_is_refused_while_one_is_under_way() -> None:
    stack = simulation(fault=raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), blue_green())
    stack.fault = lambda _place: None
    with pytest.raises(DeliveryRefusedError, match=r"v0\.2\.0 to green is shifting"):
        deploy(stack.environment(), blue_green(version="v0.3.0", sha256="c" * 64))


def test_deploying_the_live_version_changes_nothing() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    before = list(stack.store.history)
    deploy(stack.environment(), blue_green())
    assert stack.store.history == before


def test_an_instance_in_maintenance_is_drift() -> None:
    stack = simulation(minimum=2)
    stack.taken_out = frozenset({"blue-2"})
    with pytest.raises(DeliveryRefusedError, match="draining instances are blue-2, expected none"):
        deploy(stack.environment(), blue_green())
    assert stack.store.history == []
