"""Blue-green and canary deployments end promoted or rolled back, whatever fails, dies or interferes."""

from __future__ import annotations

import itertools
import signal
from functools import partial

import pytest
from hypothesis import given, settings

from observatory.delivery.deployment import deploy, preview_deployment
from observatory.delivery.errors import DeliveryRefusedError, RolledBackError
from observatory.delivery.request import DeploymentRequest
from observatory.delivery.rollback import preview_rollback, roll_back
from observatory.documents.rollout import RolloutDocument
from observatory.interruption import interruptible
from observatory.settings import FleetName
from tests.delivery.environment import MEMBERS, NEW, OLD, SIZE, Killed, MemoryStore, Simulation, simulation
from tests.delivery.faults import (
    SEQUENCES,
    Sequence,
    at_place,
    blue_green,
    canary,
    ends_decided,
    failing,
    raise_at,
    raise_once,
    rolling,
    shifts,
)

BLUE, GREEN = MEMBERS["blue"], MEMBERS["green"]


def test_blue_green_moves_all_traffic_and_keeps_the_old_fleet_running() -> None:
    stack = simulation()
    done = deploy(stack.environment(), blue_green())
    assert done.deployment is not None
    assert (done.deployment.status, stack.live, stack.runs) == (
        "promoted", {"blue": 0, "green": 100}, {**dict.fromkeys(MEMBERS["blue"], OLD), **dict.fromkeys(GREEN, NEW)},
    )  # fmt: skip
    assert stack.time >= 30
    assert stack.store.document == done


def test_a_canary_bakes_each_of_its_steps() -> None:
    stack = simulation()
    deploy(stack.environment(), canary())
    assert shifts(stack) == [5, 25, 50, 100]
    assert stack.time >= 4 * 30


def test_a_stack_where_up_would_change_more_than_the_target_is_refused() -> None:
    stack = simulation(fault=failing("check", once=True))
    with pytest.raises(DeliveryRefusedError, match="check failed"):
        deploy(stack.environment(), blue_green())
    assert (stack.store.history, stack.events) == ([], [])
    stack.fault = failing("check", once=True)
    assert deploy(stack.environment(), blue_green(accept_drift=True)).active_fleet == "green"


def test_a_preview_returns_the_deployment_and_changes_nothing() -> None:
    stack = simulation()
    planned = preview_deployment(stack.environment(), canary())
    assert planned is not None
    assert (planned.target, planned.weights, planned.status) == ("green", (5, 25, 50, 100), "preparing")
    assert (stack.store.history, stack.events) == ([], [])
    with pytest.raises(DeliveryRefusedError, match="deploy to the idle fleet, green"):
        preview_deployment(stack.environment(), blue_green(target="blue"))
    deploy(stack.environment(), canary())
    assert preview_deployment(stack.environment(), canary()) is None
    undone, healthy = preview_rollback(stack.environment())
    assert (undone.version, undone.source, healthy) == ("v0.2.0", "blue", True)
    assert stack.live["green"] == 100


def test_a_preview_of_a_rollback_is_refused_as_the_rollback_is() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up.update(dict.fromkeys(MEMBERS["blue"], False))
    refused = []
    for attempt in (preview_rollback, partial(roll_back, actor="test", reason="test")):
        with pytest.raises(DeliveryRefusedError) as caught:
            attempt(stack.environment())
        refused.append(str(caught.value))
    assert refused[0] == refused[1]
    assert "no instance of blue, which would get all traffic, responds (every instance is down)" in refused[0]
    assert preview_rollback(stack.environment(), force=True)[1] is False


def test_a_preview_of_an_interrupted_deployment_continues_it() -> None:
    stack = simulation(fault=raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), blue_green())
    stack.fault = lambda _place: None
    planned = preview_deployment(stack.environment(), blue_green())
    assert planned is not None
    assert (planned.status, planned.step) == ("shifting", 0)


@pytest.mark.parametrize(("seconds", "promoted"), [(20.0, True), (5.0, False)])
def test_a_fleet_may_take_the_health_check_time_to_become_ready(seconds: float, promoted: bool) -> None:
    stack = simulation()

    def ready(is_ready: bool) -> None:
        stack.up.update(dict.fromkeys(GREEN, is_ready))

    stack.fault = at_place("verify", lambda: ready(False))
    stack.each_sleep = lambda: ready(stack.time >= 10)
    if promoted:
        deploy(stack.environment(), blue_green(health_check_s=seconds))
    else:
        with pytest.raises(RolledBackError, match="not ready to take more traffic within 5 s"):
            deploy(stack.environment(), blue_green(health_check_s=seconds))
    assert stack.live["green"] == (100 if promoted else 0)


def test_a_fleet_that_fails_verification_never_gets_traffic() -> None:
    stack = simulation(fault=failing("verify", once=True))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green())
    assert shifts(stack) == []


def test_an_interrupted_deployment_is_rolled_back() -> None:
    stack = simulation()
    stack.each_sleep = raise_once(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}


@pytest.mark.parametrize("place", ["written", "record start", "silence"])
@pytest.mark.parametrize("wanted", [blue_green(), canary(), rolling()])
def test_an_interrupt_before_the_first_step_rolls_back(place: str, wanted: DeploymentRequest) -> None:
    store = InterruptedStore(simulation().store.document) if place == "written" else None
    stack = simulation(store=store, minimum=SIZE - 1)
    stack.fault = at_place(place, raise_once(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), wanted)
    assert (stack.live, status_of(stack), stack.silenced) == ({"blue": 100, "green": 0}, "rolled-back", set())
    assert deploy(stack.environment(), wanted).deployment is not None


def test_an_interrupt_before_a_killed_canary_continues_returns_the_traffic() -> None:
    stack = simulation(fault=raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), canary())
    assert stack.live == {"blue": 95, "green": 5}
    stack.fault = at_place("silence", raise_once(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), canary())
    assert (stack.live, status_of(stack)) == ({"blue": 100, "green": 0}, "rolled-back")


def test_an_interrupt_before_a_deployment_is_written_changes_nothing() -> None:
    stack = simulation(fault=at_place("test", raise_once(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), blue_green())
    assert (stack.store.history, stack.events) == ([], [])


def test_a_second_signal_ends_a_rollback_only_when_the_traffic_is_back() -> None:
    """As a CI system stops a job: by SIGINT and soon SIGTERM, here while the rollback waits for the old fleet."""
    stack, signals = SilentSimulation(simulation().store), iter([signal.SIGINT, signal.SIGTERM])

    def stop() -> None:
        stack.up.update(dict.fromkeys(BLUE, False))
        if number := next(signals, None):
            signal.raise_signal(number)

    stack.each_sleep = stop
    with interruptible(), pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        deploy(stack.environment(), canary(health_check_s=60.0))
    assert (stack.live, status_of(stack)) == ({"blue": 100, "green": 0}, "rolling-back")
    assert stack.time < 60
    stack.each_sleep = lambda: None
    stack.up.update(dict.fromkeys(BLUE, True))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), canary())
    assert status_of(stack) == "rolled-back"


class SilentSimulation(Simulation):
    """A stack whose restarts do not help."""

    def restart(self, fleet: FleetName) -> None:
        self.fault("restart")


class InterruptedStore(MemoryStore):
    """A store whose first write is followed by an interrupt."""

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        written = super().compare_and_set(expected, changed)
        if len(self.history) == 1:
            raise KeyboardInterrupt
        return written


def status_of(stack: Simulation) -> str:
    assert stack.store.document is not None
    assert stack.store.document.deployment is not None
    return stack.store.document.deployment.status


def test_a_deployment_without_gates_evaluates_none() -> None:
    stack = simulation(intervals=itertools.repeat(None))
    done = deploy(stack.environment(), blue_green(gated=False, bake_s=0.0))
    assert (done.green.weight, stack.time) == (100, 0.0)


@given(drawn=SEQUENCES)
@settings(max_examples=300)
def test_any_sequence_of_faults_ends_promoted_or_rolled_back(drawn: Sequence) -> None:
    ends_decided(drawn)
