"""What is refused or tested before a deployment starts."""

from __future__ import annotations

import dataclasses

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.errors import DeliveryRefusedError, TrialFailedError
from observatory.delivery.request import canary_weights
from tests.delivery.environment import OLD, Killed, simulation
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
