"""Rolling updates: instances are updated and rolled back in batches, and always enough have traffic."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.environment import Reading
from observatory.delivery.errors import DeliveryRefusedError, RollbackFailedError, RolledBackError
from observatory.delivery.rollback import roll_back
from observatory.documents.rollout import FleetState
from observatory.settings.gate_limits import GateLimits
from tests.delivery.environment import BAD, GOOD, MEMBERS, NEW, OLD, SIZE, Killed, simulation
from tests.delivery.faults import batches, blue_of, failing, once, raise_at, rolling

BLUE, GREEN = MEMBERS["blue"], MEMBERS["green"]


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [BLUE[:1], BLUE[1:2], BLUE[2:]]), (2, [BLUE[:2], BLUE[2:]])], ids=["one", "two"]
)
def test_a_rolling_update_updates_the_instances_in_batches(size: int, expected: list[tuple[str, ...]]) -> None:
    stack = simulation(minimum=3 - size)
    done = deploy(stack.environment(), rolling(batch_size=size))
    assert batches(stack) == expected
    assert stack.time >= 30 * len(expected)
    assert stack.runs == {**dict.fromkeys(BLUE, NEW), **dict.fromkeys(GREEN, OLD)}
    assert (done.blue.version, done.blue.rolling, done.blue.weight) == ("v0.2.0", None, 100)
    assert not stack.taken_out


@pytest.mark.parametrize("size", [0, 3, 4, -1])
def test_a_batch_that_leaves_no_instance_is_refused(size: int) -> None:
    stack = simulation()
    with pytest.raises(DeliveryRefusedError, match="between 1 and 2"):
        deploy(stack.environment(), rolling(batch_size=size))
    assert stack.store.history == []


def test_a_fleet_of_one_instance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = simulation()
    monkeypatch.setitem(MEMBERS, "blue", ("blue-1",))
    with pytest.raises(DeliveryRefusedError, match=r"no idle capacity.*fleets\.size"):
        deploy(stack.environment(), rolling())
    assert stack.store.history == []


def test_a_fleet_with_an_unready_instance_is_refused() -> None:
    stack = simulation()
    stack.up["blue-3"] = False
    with pytest.raises(DeliveryRefusedError, match="instances that are not ready"):
        deploy(stack.environment(), rolling())
    assert stack.store.history == []


def test_a_stack_that_differs_from_its_settings_is_refused() -> None:
    stack = simulation(fault=failing("check", once=True))
    with pytest.raises(DeliveryRefusedError, match="check failed"):
        deploy(stack.environment(), rolling())
    assert stack.store.history == []


def test_a_platform_without_rolling_updates_refuses_them() -> None:
    stack = simulation()
    with pytest.raises(DeliveryRefusedError, match="has no rolling updates"):
        deploy(dataclasses.replace(stack.environment(), instances=None), rolling())
    assert stack.store.history == []


def test_a_rolling_update_may_target_the_idle_fleet() -> None:
    stack = simulation()
    done = deploy(stack.environment(), rolling(target="green"))
    assert batches(stack) == [GREEN[:1], GREEN[1:2], GREEN[2:]]
    assert (done.green.version, done.green.weight) == ("v0.2.0", 0)


def test_failing_instances_are_rolled_back_in_batches() -> None:
    stack = simulation(intervals=iter([GOOD] * 8 + [BAD] * 4), minimum=2)
    with pytest.raises(RolledBackError, match="errors of all routes"):
        deploy(stack.environment(), rolling())
    assert batches(stack) == [BLUE[:1], BLUE[1:2], BLUE[:1], BLUE[1:2]]
    assert set(stack.runs.values()) == {OLD}
    assert (blue_of(stack).version, blue_of(stack).rolling) == ("v0.1.0", None)


def test_an_instance_that_fails_verification_gets_no_traffic() -> None:
    stack = simulation(fault=failing("verify", once=True), minimum=2)
    with pytest.raises(RolledBackError, match="verify failed"):
        deploy(stack.environment(), rolling())
    assert stack.runs["blue-1"] == OLD
    assert batches(stack) == [BLUE[:1]]  # only with the old version


def test_the_document_has_the_version_of_each_instance_during_the_update() -> None:
    stack = simulation(minimum=2)
    seen: list[FleetState] = []
    stack.each_sleep = lambda: seen.append(blue_of(stack))
    deploy(stack.environment(), rolling())
    first = seen[0]
    assert (first.version, first.release("blue-1").version, first.release("blue-2").version) == (
        "v0.1.0", "v0.2.0", "v0.1.0",
    )  # fmt: skip
    assert first.versions == "v0.1.0, v0.2.0 on blue-1"


def test_a_continued_rolling_update_bakes_the_last_batch_again() -> None:
    stack = simulation(fault=raise_at("sleep", Killed()), minimum=2)
    with pytest.raises(Killed):
        deploy(stack.environment(), rolling())
    stack.fault = lambda _place: None
    deploy(stack.environment(), rolling())
    assert batches(stack) == [BLUE[:1], BLUE[1:2], BLUE[2:]]
    assert stack.time >= 3 * 30


def test_a_promoted_rolling_update_is_rolled_back_in_batches() -> None:
    stack = simulation(minimum=2)
    deploy(stack.environment(), rolling())
    roll_back(stack.environment(), actor="me", reason="latency")
    assert batches(stack)[3:] == [BLUE[:1], BLUE[1:2], BLUE[2:]]
    assert set(stack.runs.values()) == {OLD}
    with pytest.raises(DeliveryRefusedError, match="rolled back already"):
        roll_back(stack.environment(), actor="me", reason="again")


def test_a_rollback_is_refused_where_the_stack_differs_from_its_settings() -> None:
    stack = simulation(minimum=2)
    before = deploy(stack.environment(), rolling())
    stack.fault = failing("check", once=True)
    with pytest.raises(DeliveryRefusedError, match="check failed"):
        roll_back(stack.environment(), actor="me", reason="latency")
    assert stack.store.document == before


def test_unready_instances_are_rolled_back_first() -> None:
    stack = simulation(minimum=1)
    done: list[bool] = []

    def become_unready() -> None:
        if len(batches(stack)) == 2 and not done:
            done.append(True)
            stack.up["blue-2"] = False
            send_control_request(stack.environment(), "abort")

    stack.each_sleep = become_unready
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), rolling())
    assert batches(stack)[2:] == [BLUE[1:2], BLUE[:1]]


def test_a_rollback_that_would_leave_too_few_instances_stops_and_can_continue() -> None:
    stack = simulation(minimum=2)
    deploy(stack.environment(), rolling())
    stack.up["blue-3"] = False
    stack.minimum = 1  # one is not ready already
    stack.fault = failing("install", once=False)
    with pytest.raises(RollbackFailedError, match="blue-3 cannot be rolled back"):
        roll_back(stack.environment(), actor="me", reason="latency")
    stack.fault = lambda _place: None
    roll_back(stack.environment(), actor="me", reason="mended")
    assert set(stack.runs.values()) == {OLD}


def test_updated_instances_are_compared_with_pending_ones() -> None:
    stack = simulation(minimum=2)
    compared: list[tuple[str, ...] | None] = []
    read = stack.read

    def note(fleet: Any, instances: Any = None, *, since: float | None = None, promised: Any = ()) -> Reading:
        assert since is not None  # alerts from before the version was verified do not count
        compared.append(instances)
        return read(fleet, instances)

    stack.read = note  # type: ignore[method-assign]
    deploy(stack.environment(limits=GateLimits(minimum_evaluations=1)), rolling(bake_s=5.0))
    assert compared == [*2 * [BLUE[:1], BLUE[1:]], *2 * [BLUE[:2], BLUE[2:]], *2 * [BLUE]]


def test_a_second_signal_ends_the_restoration_of_instances_which_the_same_command_continues() -> None:
    stack = simulation(minimum=SIZE - 1)

    def interrupt_again(place: str) -> None:
        restoring = [details for event, details in stack.events if event == "rollback"]
        if restoring and place == "install":
            stack.fault = lambda _place: None
            raise KeyboardInterrupt
        if place == "sleep" and not restoring:
            raise KeyboardInterrupt

    stack.fault = interrupt_again
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), rolling())
    assert stack.store.document
    assert stack.store.document.unfinished
    assert stack.store.document.unfinished.status == "rolling-back"
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), rolling())
    assert set(stack.runs.values()) == {OLD}


def test_an_updated_instance_that_keeps_the_others_down_is_restored() -> None:
    stack = simulation(minimum=0, intervals=itertools.repeat(BAD))
    stack.respond = lambda fleet, instances: True  # type: ignore[method-assign]  # noqa: ARG005
    ready, installs = stack.up, itertools.count()

    def hold_and_free(place: str) -> None:
        if place == "install" and next(installs) == 1:  # the old version is installed again on the only updated one
            ready.update(dict.fromkeys(BLUE, True))

    stack.fault = hold_and_free
    stack.each_sleep = once(lambda: ready.update({"blue-2": False, "blue-3": False}))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), rolling())
    assert (stack.runs["blue-1"], stack.healthy("blue"), blue_of(stack).version) == (OLD, True, "v0.1.0")


def test_the_only_ready_instance_stays_while_the_others_do_not_respond() -> None:
    stack = simulation(minimum=2, intervals=itertools.repeat(BAD))
    stack.each_sleep = once(lambda: stack.up.update({"blue-2": False, "blue-3": False}))
    with pytest.raises(RollbackFailedError, match="blue-1 cannot be rolled back: 0 of blue-2, blue-3 are ready"):
        deploy(stack.environment(), rolling())
    assert (stack.up["blue-1"], stack.taken_out) == (True, frozenset())
