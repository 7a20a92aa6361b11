"""Rollbacks of finished and running deployments."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import (
    DeliveryRefusedError,
    LockLostError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
)
from observatory.delivery.rollback import roll_back
from observatory.documents.rollout import RolloutDocument, RolloutError
from observatory.settings import FleetName
from tests.delivery.environment import BAD, MEMBERS, OLD, Killed, MemoryStore, Simulation, simulation
from tests.delivery.faults import blue_green, canary, meanwhile, once, raise_at, raise_once


def test_a_rollback_takes_over_a_running_deployment() -> None:
    stack = simulation()
    stack.each_sleep = once(lambda: roll_back(stack.environment(), actor="other", reason="pages"))
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.store.document is not None
    assert stack.store.document.deployment is not None
    assert stack.store.document.deployment.status == "rolled-back"


def test_a_rollback_between_the_writes_of_document_and_balancer_wins() -> None:
    """The deployment that was taken over writes to the balancer last, and writes the newer document."""
    stack = simulation()
    calls = itertools.count()

    def meddle(place: str) -> None:
        if place == "set_weights" and next(calls) == 1:  # the deployment is about to write its shift
            stack.fault = lambda _place: None
            meanwhile(stack)

    stack.fault = meddle
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}


def test_a_promoted_deployment_is_rolled_back_once() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    roll_back(stack.environment(), actor="me", reason="latency")
    assert stack.live == {"blue": 100, "green": 0}
    with pytest.raises(DeliveryRefusedError, match="rolled back already"):
        roll_back(stack.environment(), actor="me", reason="again")


def test_a_stack_without_deployments_has_nothing_to_roll_back() -> None:
    with pytest.raises(DeliveryRefusedError, match="has had no deployment"):
        roll_back(simulation().environment(), actor="me", reason="panic")


def test_a_rollback_to_an_unhealthy_fleet_is_escalated() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up["blue-1"] = False
    with pytest.raises(RollbackFailedError, match="blue is not healthy"):
        roll_back(stack.environment(), actor="me", reason="latency")
    assert any(event == "escalate" for event, _ in stack.events)


def test_the_target_is_stopped_as_soon_as_it_has_no_traffic() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    done = roll_back(stack.environment(), actor="me", reason="latency")
    assert (done.green.stopped, done.green.version, done.blue.stopped) == (MEMBERS["green"], "v0.2.0", ())
    assert not any(stack.up[name] for name in MEMBERS["green"])
    assert stack.taken_out == set(MEMBERS["green"])  # in maintenance no alert fires
    again = deploy(stack.environment(), blue_green(version="v0.3.0"))
    assert (again.green.stopped, stack.live["green"], stack.taken_out) == ((), 100, frozenset())


def test_an_interrupted_deployment_stops_its_target() -> None:
    stack = simulation()
    stack.each_sleep = raise_once(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), blue_green())
    assert stack.store.document is not None
    assert stack.store.document.green.stopped == MEMBERS["green"]
    assert stack.healthy("blue")


def test_a_target_that_an_up_has_started_while_it_was_stopped_is_stopped_again() -> None:
    """The `up` has read the document before the rollback, and does not know yet that the fleet is to be stopped."""
    stack = simulation()
    deploy(stack.environment(), blue_green())

    def start(place: str) -> None:
        if place == "stop, done":
            stack.fault = lambda _place: None
            stack.up.update(dict.fromkeys(MEMBERS["green"], True))

    stack.fault = start
    done = roll_back(stack.environment(), actor="me", reason="latency")
    assert (done.green.stopped, stack.healthy("green")) == (MEMBERS["green"], False)


def test_a_target_that_keeps_the_source_down_is_stopped_before_the_source_is_judged() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up["blue-1"] = stack.up["blue-2"] = False  # they respond, and are not ready: green holds all connections
    freed = stack.stop

    def stop(fleet: FleetName, **options: Any) -> tuple[str, ...]:
        stack.each_sleep = lambda: stack.up.update(dict.fromkeys(MEMBERS["blue"], True))
        return freed(fleet, **options)

    stack.stop = stop  # type: ignore[method-assign]
    assert roll_back(stack.environment(), actor="me", reason="connections").weights == {"blue": 100, "green": 0}


def test_a_gate_stops_the_target_and_restores_its_previous_version() -> None:
    stack = simulation(intervals=itertools.repeat(BAD))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green())
    assert stack.store.document is not None
    green = stack.store.document.green
    assert (green.version, green.stopped, stack.taken_out) == ("v0.1.0", (), frozenset())
    assert {stack.runs[name] for name in MEMBERS["green"]} == {OLD}
    events = [event for event, _ in stack.events]
    assert events.index("rollback") < events.index("stopped") < events.index("rolled-back")


def test_the_deployment_that_was_taken_over_stops_what_it_has_started_since() -> None:
    stack = simulation()

    def taken_over_while_it_installs(place: str) -> None:
        if place == "install":
            stack.fault = lambda _place: None
            meanwhile(stack)

    stack.fault = taken_over_while_it_installs
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.store.document is not None
    assert stack.store.document.green.stopped == MEMBERS["green"]
    assert not any(stack.up[name] for name in MEMBERS["green"])


def test_a_rollback_to_a_fleet_that_does_not_respond_is_refused_and_names_the_ways_out() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up.update(dict.fromkeys(MEMBERS["blue"], False))
    before = stack.store.document
    with pytest.raises(DeliveryRefusedError, match=r"no instance of blue.* blue has 0 % and green has 100 %.*--force"):
        roll_back(stack.environment(), actor="me", reason="latency")
    assert (stack.store.document, stack.live["green"]) == (before, 100)
    done = roll_back(stack.environment(), actor="me", reason="latency", force=True)
    assert (done.weights, stack.healthy("blue")) == ({"blue": 100, "green": 0}, True)


def test_a_forced_rollback_to_a_dead_fleet_leaves_the_other_one_running() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up.update(dict.fromkeys(MEMBERS["blue"], False))
    stack.restart = lambda fleet: None  # type: ignore[method-assign]  # noqa: ARG005
    with pytest.raises(RollbackFailedError, match="blue is not healthy"):
        roll_back(stack.environment(), actor="me", reason="latency", force=True)
    assert stack.store.document is not None
    assert (stack.store.document.green.stopped, stack.healthy("green")) == ((), True)


def test_a_gate_restarts_a_source_that_does_not_respond_before_it_gets_the_traffic() -> None:
    stack = simulation(intervals=itertools.repeat(BAD))
    stack.each_sleep = once(lambda: stack.up.update(dict.fromkeys(MEMBERS["blue"], False)))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green())
    assert (stack.live["blue"], stack.healthy("blue")) == (100, True)


def test_a_rollback_that_was_interrupted_after_its_shift_continues_whatever_the_source_does() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.fault = raise_at("stop", Killed())
    with pytest.raises(Killed):
        roll_back(stack.environment(), actor="me", reason="latency")
    stack.fault = lambda _place: None
    done = roll_back(stack.environment(), actor="me", reason="again")
    assert done.deployment is not None
    assert (done.deployment.status, done.green.stopped) == ("rolled-back", MEMBERS["green"])


class Unwritable(MemoryStore):
    """A store that refuses every write, as on a full disk."""

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        raise RolloutError("local.json: cannot be written: No space left on device")


class Damaged(MemoryStore):
    """A store whose document cannot be read."""

    def read(self) -> RolloutDocument | None:
        raise RolloutError("local.json: not a rollout document")


class Missing(MemoryStore):
    """A store whose document was removed."""

    def read(self) -> RolloutDocument | None:
        return None


def baking(store: type[MemoryStore]) -> Simulation:
    """Return a stack whose store fails from the middle of a canary on, which then was killed."""
    stack = simulation()
    stack.each_sleep = raise_once(Killed())
    with pytest.raises(Killed):
        deploy(stack.environment(), canary())
    stack.store = store(stack.store.document)
    return stack


def test_a_document_that_cannot_be_written_keeps_no_rollback_from_returning_the_traffic() -> None:
    stack = baking(Unwritable)
    with pytest.raises(RollbackFailedError, match=r"blue has 100 % and green has 0 %.*No space left") as failed:
        roll_back(stack.environment(), actor="me", reason="errors")
    assert "rollback --method blue-green --emergency" in str(failed.value)
    assert (stack.live["blue"], stack.up["green-1"], stack.healthy("blue")) == (100, False, True)


@pytest.mark.parametrize("store", [Unwritable, Damaged, Missing])
def test_a_deployment_that_loses_its_document_returns_the_traffic(store: type[MemoryStore]) -> None:
    stack = simulation()

    def lose() -> None:
        stack.store = store(stack.store.document)
        running.__dict__["store"] = stack.store

    stack.each_sleep = once(lose)
    stack.intervals = itertools.repeat(BAD)
    running = stack.environment()
    with pytest.raises(RollbackFailedError, match="blue has 100 % and green has 0 %"):
        deploy(running, canary())
    assert (stack.live["blue"], stack.up["green-1"]) == (100, False)


def test_a_document_that_cannot_be_read_is_an_error_with_the_shares_of_the_traffic() -> None:
    stack = baking(Damaged)
    with pytest.raises(RolloutError, match=r"blue has 95 % and green has 5 % of the traffic, unchanged"):
        roll_back(stack.environment(), actor="me", reason="errors")
    with pytest.raises(RolloutError, match=r"blue has 95 % and green has 5 % .*--emergency"):
        send_control_request(stack.environment(), "abort")


def test_what_a_read_found_wrong_with_the_document_is_in_the_journal() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.store.problem = "local.json: is missing. The copy of version 4 is used"
    roll_back(stack.environment(), actor="me", reason="errors")
    assert ("recovered", {"reason": stack.store.problem}) in stack.events


class LostLock:
    """A deployment lock that another process has taken before the check with this number."""

    def __init__(self, lost: int) -> None:
        self.left = lost

    def check(self, record: Callable[..., None]) -> None:
        record("checked")
        self.left -= 1
        if self.left < 0:
            raise LockLostError("alice@one: deploy database holds the lock now")


@pytest.mark.parametrize("lost", range(8))
def test_a_deployment_that_has_lost_the_lock_is_rolled_back_with_the_name_of_the_holder(lost: int) -> None:
    stack = simulation()
    with pytest.raises(RolledBackError, match="alice@one: deploy database"):
        deploy(replace(stack.environment(), lock=LostLock(lost)), canary())
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.store.document is not None
    assert stack.store.document.unfinished is None


def test_every_evaluation_and_write_checks_the_lock() -> None:
    stack = simulation()
    deploy(replace(stack.environment(), lock=LostLock(10_000)), canary())
    events = Counter(event for event, _ in stack.events)
    assert events["checked"] >= events["gate"] + len(stack.store.history) - 1
