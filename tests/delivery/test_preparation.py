"""What is refused or tested before a deployment starts."""

from __future__ import annotations

import dataclasses

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.environment import UnjudgedError
from observatory.delivery.errors import (
    DeliveryRefusedError,
    DeploymentPausedError,
    RolledBackError,
    TrialFailedError,
    UnjudgedVersionError,
)
from observatory.delivery.request import canary_weights
from observatory.errors import REFUSED
from tests.delivery.environment import MEMBERS, OLD, Killed, Simulation, simulation
from tests.delivery.faults import blue_green, failing, raise_at


def test_pre_deployment_tests_run_before_anything_changes_and_are_recorded() -> None:
    stack = simulation()
    done = deploy(stack.environment(), blue_green())
    assert stack.tried == [("green", "v0.2.0")]
    assert done.deployment is not None
    assert done.deployment.tests == "passed"
    assert [event for event, _ in stack.events][:3] == ["tests-passed", "start", "install"]


def test_failed_pre_deployment_tests_change_nothing() -> None:
    stack = simulation(fault=failing("test", once=True))
    before = stack.store.document
    with pytest.raises(
        TrialFailedError, match=r"v0\.2\.0 failed its pre-deployment tests, nothing changed: test failed"
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
    with pytest.raises(UnjudgedVersionError, match=r"not tested to the end, nothing changed: both fleets") as caught:
        deploy(stack.environment(), blue_green())
    assert caught.value.exit_code == REFUSED
    assert (stack.store.document, stack.events[-1][0]) == (before, "tests-unjudged")


def test_a_target_that_cannot_be_verified_because_both_fleets_are_ill_waits_without_traffic() -> None:
    stack = simulation()
    unjudged("verify", stack, until=1000)
    with pytest.raises(DeploymentPausedError, match="is on green without traffic: both fleets are ill"):
        deploy(stack.environment(), blue_green())
    assert (stack.live["green"], stack.time) == (0, 60)
    stack.time = 1000
    assert deploy(stack.environment(), blue_green()).fleet("green").weight == 100


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
