"""The deployment's state machine: it ends promoted or rolled back, whatever fails, dies or interferes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy, preview_deployment
from observatory.delivery.environment import Sample
from observatory.delivery.errors import (
    DeliveryRefusedError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
    TrialFailedError,
)
from observatory.delivery.request import canary_weights
from observatory.delivery.rollback import preview_rollback, roll_back
from observatory.documents.rollout import FleetState
from tests.delivery.environment import BAD, ERRORS, GOOD, MEMBERS, NEW, OLD, Killed, Simulation, simulation
from tests.delivery.faults import SEQUENCES, Sequence, blue_green, canary, ends_decided, meanwhile, rolling

BLUE, GREEN = MEMBERS["blue"], MEMBERS["green"]


def shifts(stack: Simulation) -> list[int]:
    return [details["weights"]["green"] for event, details in stack.events if event == "shift"]


def test_blue_green_moves_all_traffic_and_keeps_the_old_fleet_warm() -> None:
    stack = simulation()
    done = deploy(stack.environment(), blue_green())
    assert done.deployment is not None
    assert (done.deployment.status, stack.live, stack.runs) == (
        "promoted", {"blue": 0, "green": 100}, {**dict.fromkeys(MEMBERS["blue"], OLD), **dict.fromkeys(GREEN, NEW)},
    )  # fmt: skip
    assert stack.time >= 30
    assert stack.store.document == done


def test_a_version_is_tried_before_anything_moves_and_the_document_says_so() -> None:
    stack = simulation()
    done = deploy(stack.environment(), blue_green())
    assert stack.tried == [("green", "v0.2.0")]
    assert done.deployment is not None
    assert done.deployment.tests == "passed"
    assert [event for event, _ in stack.events][:3] == ["tests-passed", "start", "install"]


def test_a_version_that_fails_its_trial_changes_nothing() -> None:
    stack = simulation(fault=_failing("test", once=True))
    before = stack.store.document
    with pytest.raises(
        TrialFailedError, match=r"v0\.2\.0 failed before it was deployed, nothing was changed: test failed"
    ):
        deploy(stack.environment(), blue_green())
    assert stack.store.document == before
    assert (stack.live, set(stack.runs.values())) == ({"blue": 100, "green": 0}, {OLD})
    assert [event for event, _ in stack.events] == ["tests-failed"]


def test_skipped_tests_are_recorded() -> None:
    stack = simulation(fault=_failing("test", once=True))
    done = deploy(stack.environment(), blue_green(skip_tests=True))
    assert done.deployment is not None
    assert done.deployment.tests == "skipped"
    assert stack.events[0][0] == "tests-skipped"


def test_where_nothing_can_be_tried_apart_that_must_be_said() -> None:
    stack = simulation()
    environment = dataclasses.replace(stack.environment(), trial=None)
    with pytest.raises(DeliveryRefusedError, match="--skip-tests brings it without"):
        deploy(environment, blue_green())
    assert stack.store.history == []
    deploy(environment, blue_green(skip_tests=True))


def test_a_deployment_that_goes_on_after_a_kill_is_not_tried_again() -> None:
    stack = simulation(fault=_raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), blue_green())
    stack.fault = _failing("test", once=True)
    assert deploy(stack.environment(), blue_green()).green.weight == 100


def test_a_canary_goes_by_its_steps_and_bakes_each() -> None:
    stack = simulation()
    deploy(stack.environment(), canary())
    assert shifts(stack) == [5, 25, 50, 100]
    assert stack.time >= 4 * 30


@pytest.mark.parametrize("first", [0, 100, 101, -5])
def test_a_canary_out_of_range_is_refused(first: int) -> None:
    with pytest.raises(DeliveryRefusedError, match="between 1 and 99"):
        canary_weights(first, (25, 100))


def test_the_third_bad_look_in_a_row_rolls_back() -> None:
    stack = simulation(samples=iter([GOOD, BAD, BAD, GOOD, BAD, BAD, BAD]))
    with pytest.raises(RolledBackError, match=r"50\.00% errors"):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.time == 7 * 5
    document = stack.store.document
    assert document is not None
    assert document.green.version == "v0.1.0"
    assert document.deployment is not None
    assert document.deployment.status == "rolled-back"


def test_looks_that_take_their_time_do_not_put_off_the_next_ones() -> None:
    def slow() -> Iterator[Sample]:
        while True:
            stack.time += 3.0
            yield BAD

    stack = simulation(samples=slow())
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.time == 3 * 5 + 3


def test_no_data_never_promotes_but_rolls_back_at_the_deadline() -> None:
    stack = simulation(samples=itertools.repeat(None))
    with pytest.raises(RolledBackError, match="no verdict"):
        deploy(stack.environment(), blue_green(bake_s=10.0))
    assert stack.time > 60
    assert stack.live["green"] == 0


def test_nan_is_not_a_pass() -> None:
    nan = Sample(requests=500, error_ratio=float("nan"), p95_s=0.01, saturation=0.1, restarts=0)
    stack = simulation(samples=itertools.repeat(nan))
    with pytest.raises(RolledBackError, match="no number"):
        deploy(stack.environment(), blue_green(bake_s=10.0))


def test_too_little_traffic_is_probed() -> None:
    little = Sample(requests=1, error_ratio=0.0, p95_s=0.01, saturation=0.0, restarts=0)
    stack = simulation(samples=iter([little, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]))
    deploy(stack.environment(), blue_green())
    assert stack.probed == 20


def test_a_firing_alert_of_the_fleet_fails_a_step() -> None:
    alarmed = Sample(
        requests=0, error_ratio=0.0, p95_s=None, saturation=0.0, restarts=0, alerts=("StorageServiceDown",)
    )
    stack = simulation(samples=itertools.repeat(alarmed))
    with pytest.raises(RolledBackError, match="StorageServiceDown"):
        deploy(stack.environment(), blue_green())


OUTAGE = Sample(
    requests=500, error_ratio=1.0, p95_s=None, saturation=0.0, restarts=0,
    alerts=("StorageServiceDown",), database_down=True,
)  # fmt: skip


def test_an_outage_of_the_database_pauses_a_step_and_is_not_the_versions_fault() -> None:
    stack = simulation(samples=iter([GOOD, *[OUTAGE] * 8]))
    deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 0, "green": 100}
    assert stack.time >= 30 + 8 * 5
    reasons = [details["reasons"] for event, details in stack.events if event == "gate"]
    assert ("the database does not answer, or did not lately: see StorageDatabaseDown",) in reasons
    assert stack.probed == 0


def test_an_outage_of_the_database_beyond_the_deadline_rolls_back() -> None:
    stack = simulation(samples=itertools.repeat(OUTAGE))
    with pytest.raises(RolledBackError, match=r"no verdict for .* StorageDatabaseDown"):
        deploy(stack.environment(), blue_green())


def test_a_plan_says_what_a_deployment_would_do_and_changes_nothing() -> None:
    stack = simulation()
    planned = preview_deployment(stack.environment(), canary())
    assert planned is not None
    assert (planned.target, planned.weights, planned.status) == ("green", (5, 25, 50, 100), "preparing")
    assert (stack.store.history, stack.events) == ([], [])
    with pytest.raises(DeliveryRefusedError, match="deploy to green"):
        preview_deployment(stack.environment(), blue_green(target="blue"))
    deploy(stack.environment(), canary())
    assert preview_deployment(stack.environment(), canary()) is None
    undone, healthy = preview_rollback(stack.environment())
    assert (undone.version, undone.source, healthy) == ("v0.2.0", "blue", True)
    assert stack.live["green"] == 100


def test_a_plan_of_what_is_under_way_goes_on_with_it() -> None:
    stack = simulation(fault=_raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), blue_green())
    stack.fault = lambda _place: None
    planned = preview_deployment(stack.environment(), blue_green())
    assert planned is not None
    assert (planned.status, planned.step) == ("shifting", 0)


@pytest.mark.parametrize(("seconds", "promoted"), [(20.0, True), (5.0, False)])
def test_a_fleet_gets_its_time_to_be_ready(seconds: float, promoted: bool) -> None:
    stack = simulation()

    def ready(is_ready: bool) -> None:
        stack.up.update(dict.fromkeys(GREEN, is_ready))

    stack.fault = _at_once("verify", lambda: ready(False))
    stack.each_sleep = lambda: ready(stack.time >= 10)
    if promoted:
        deploy(stack.environment(), blue_green(health_check_s=seconds))
    else:
        with pytest.raises(RolledBackError, match="was not within 5 s"):
            deploy(stack.environment(), blue_green(health_check_s=seconds))
    assert stack.live["green"] == (100 if promoted else 0)


def test_a_fleet_that_fails_its_verification_never_gets_traffic() -> None:
    stack = simulation(fault=_failing("verify", once=True))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green())
    assert shifts(stack) == []


def test_interrupted_is_rolled_back() -> None:
    stack = simulation()
    stack.each_sleep = _raise_once(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}


def test_rollback_from_another_terminal_takes_over() -> None:
    stack = simulation()
    stack.each_sleep = _once(lambda: roll_back(stack.environment(), actor="other", reason="pages"))
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.store.document is not None
    assert stack.store.document.deployment is not None
    assert stack.store.document.deployment.status == "rolled-back"


def test_rollback_between_document_and_balancer_wins() -> None:
    """The older deployment tells the balancer last, and must leave what the newer document says."""
    stack = simulation()
    calls = itertools.count()

    def meddle(place: str) -> None:
        if place == "set_weights" and next(calls) == 1:  # the deployment's shift, about to be told
            stack.fault = lambda _place: None
            meanwhile(stack)

    stack.fault = meddle
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}


def test_rollback_after_promotion() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    roll_back(stack.environment(), actor="me", reason="latency")
    assert stack.live == {"blue": 100, "green": 0}
    with pytest.raises(DeliveryRefusedError, match="rolled back already"):
        roll_back(stack.environment(), actor="me", reason="again")


def test_nothing_to_roll_back() -> None:
    with pytest.raises(DeliveryRefusedError, match="no deployment"):
        roll_back(simulation().environment(), actor="me", reason="panic")


def test_a_rollback_to_a_sick_fleet_says_so() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up["blue-1"] = False
    with pytest.raises(RollbackFailedError, match="blue is not healthy"):
        roll_back(stack.environment(), actor="me", reason="latency")
    assert any(event == "escalate" for event, _ in stack.events)


def test_the_fleet_that_serves_is_no_target() -> None:
    with pytest.raises(DeliveryRefusedError, match="deploy to green"):
        deploy(simulation().environment(), blue_green(target="blue"))


def test_drift_is_refused_unless_accepted() -> None:
    stack = simulation()
    stack.live = {"blue": 60, "green": 40}
    with pytest.raises(DeliveryRefusedError, match="blue 60 %, green 40 %"):
        deploy(stack.environment(), blue_green())
    assert stack.store.history == []
    deploy(stack.environment(), blue_green(accept_drift=True))
    assert stack.live["green"] == 100


def test_another_version_waits_for_the_one_under_way() -> None:
    stack = simulation(fault=_raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.environment(), blue_green())
    stack.fault = lambda _place: None
    with pytest.raises(DeliveryRefusedError, match=r"v0\.2\.0 to green is shifting"):
        deploy(stack.environment(), blue_green(version="v0.3.0", sha256="c" * 64))


def test_the_version_that_serves_is_left_alone() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    before = list(stack.store.history)
    deploy(stack.environment(), blue_green())
    assert stack.store.history == before


def test_requests_from_another_terminal() -> None:
    stack = simulation()
    asked = iter(["pause", None, None, None, None, None, None, None, "promote"])

    def meddle() -> None:
        request = next(asked, "none")
        if request == "none":
            return
        if request or stack.time > 40:
            send_control_request(stack.environment(), request)

    stack.each_sleep = meddle
    deploy(stack.environment(), blue_green(bake_s=10_000.0))
    assert stack.live["green"] == 100
    assert stack.time < 1000


def test_abort_from_another_terminal() -> None:
    stack = simulation()
    stack.each_sleep = _once(lambda: send_control_request(stack.environment(), "abort"))
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), blue_green())
    assert stack.live["green"] == 0
    with pytest.raises(DeliveryRefusedError, match="no deployment is under way"):
        send_control_request(stack.environment(), "pause")


def batches(stack: Simulation) -> list[tuple[str, ...]]:
    return [details["instances"] for event, details in stack.events if event.startswith("moved")]


def blue_of(stack: Simulation) -> FleetState:
    assert stack.store.document
    return stack.store.document.blue


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [BLUE[:1], BLUE[1:2], BLUE[2:]]), (2, [BLUE[:2], BLUE[2:]])], ids=["one", "two"]
)
def test_a_rolling_update_takes_the_instances_by_turns(size: int, expected: list[tuple[str, ...]]) -> None:
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


def test_one_instance_alone_cannot_be_updated_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = simulation()
    monkeypatch.setitem(MEMBERS, "blue", ("blue-1",))
    with pytest.raises(DeliveryRefusedError, match=r"no idle capacity.*fleets\.size"):
        deploy(stack.environment(), rolling())
    assert stack.store.history == []


def test_a_rolling_update_of_a_fleet_that_is_not_whole_is_refused() -> None:
    stack = simulation()
    stack.up["blue-3"] = False
    with pytest.raises(DeliveryRefusedError, match="not ready"):
        deploy(stack.environment(), rolling())
    assert stack.store.history == []


def test_a_rolling_update_of_a_stack_that_differs_is_refused() -> None:
    stack = simulation(fault=_failing("check", once=True))
    with pytest.raises(DeliveryRefusedError, match="check failed"):
        deploy(stack.environment(), rolling())
    assert stack.store.history == []


def test_where_instances_are_not_updated_one_by_one_no_rolling_update_begins() -> None:
    stack = simulation()
    with pytest.raises(DeliveryRefusedError, match="not updated one by one"):
        deploy(dataclasses.replace(stack.environment(), instances=None), rolling())
    assert stack.store.history == []


def test_a_rolling_update_may_go_to_the_idle_fleet() -> None:
    stack = simulation()
    done = deploy(stack.environment(), rolling(target="green"))
    assert batches(stack) == [GREEN[:1], GREEN[1:2], GREEN[2:]]
    assert (done.green.version, done.green.weight) == ("v0.2.0", 0)


def test_bad_instances_go_back_by_turns() -> None:
    stack = simulation(samples=iter([GOOD] * 8 + [BAD] * 3), minimum=2)
    with pytest.raises(RolledBackError, match=r"50\.00% errors"):
        deploy(stack.environment(), rolling())
    assert batches(stack) == [BLUE[:1], BLUE[1:2], BLUE[:1], BLUE[1:2]]
    assert set(stack.runs.values()) == {OLD}
    assert (blue_of(stack).version, blue_of(stack).rolling) == ("v0.1.0", None)


def test_an_instance_that_fails_its_verification_gets_no_traffic() -> None:
    stack = simulation(fault=_failing("verify", once=True), minimum=2)
    with pytest.raises(RolledBackError, match="verify failed"):
        deploy(stack.environment(), rolling())
    assert stack.runs["blue-1"] == OLD
    assert batches(stack) == [BLUE[:1]]  # only with the old version


def test_the_document_tells_in_the_middle_what_each_instance_runs() -> None:
    stack = simulation(minimum=2)
    seen: list[FleetState] = []
    stack.each_sleep = lambda: seen.append(blue_of(stack))
    deploy(stack.environment(), rolling())
    first = seen[0]
    assert (first.version, first.release("blue-1").version, first.release("blue-2").version) == (
        "v0.1.0", "v0.2.0", "v0.1.0",
    )  # fmt: skip
    assert first.versions == "v0.1.0, v0.2.0 on blue-1"


def test_a_killed_rolling_update_goes_on_and_watches_the_batch_again() -> None:
    stack = simulation(fault=_raise_at("sleep", Killed()), minimum=2)
    with pytest.raises(Killed):
        deploy(stack.environment(), rolling())
    stack.fault = lambda _place: None
    deploy(stack.environment(), rolling())
    assert batches(stack) == [BLUE[:1], BLUE[1:2], BLUE[2:]]
    assert stack.time >= 3 * 30


def test_a_promoted_rolling_update_is_undone_by_turns() -> None:
    stack = simulation(minimum=2)
    deploy(stack.environment(), rolling())
    roll_back(stack.environment(), actor="me", reason="latency")
    assert batches(stack)[3:] == [BLUE[:1], BLUE[1:2], BLUE[2:]]
    assert set(stack.runs.values()) == {OLD}
    with pytest.raises(DeliveryRefusedError, match="rolled back already"):
        roll_back(stack.environment(), actor="me", reason="again")


def test_a_promoted_rolling_update_is_not_undone_where_the_stack_differs() -> None:
    stack = simulation(minimum=2)
    before = deploy(stack.environment(), rolling())
    stack.fault = _failing("check", once=True)
    with pytest.raises(DeliveryRefusedError, match="check failed"):
        roll_back(stack.environment(), actor="me", reason="latency")
    assert stack.store.document == before


def test_instances_that_do_not_serve_go_back_first() -> None:
    stack = simulation(minimum=1)
    done: list[bool] = []

    def fall_ill() -> None:
        if len(batches(stack)) == 2 and not done:
            done.append(True)
            stack.up["blue-2"] = False
            send_control_request(stack.environment(), "abort")

    stack.each_sleep = fall_ill
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), rolling())
    assert batches(stack)[2:] == [BLUE[1:2], BLUE[:1]]


def test_a_way_back_that_would_leave_too_few_stops_and_goes_on_later() -> None:
    stack = simulation(minimum=2)
    deploy(stack.environment(), rolling())
    stack.up["blue-3"] = False
    stack.minimum = 1  # it is one less already
    stack.fault = _failing("install", once=False)
    with pytest.raises(RollbackFailedError, match="blue-3 cannot be brought back"):
        roll_back(stack.environment(), actor="me", reason="latency")
    stack.fault = lambda _place: None
    roll_back(stack.environment(), actor="me", reason="mended")
    assert set(stack.runs.values()) == {OLD}


def test_the_instances_that_moved_are_compared_with_those_that_did_not() -> None:
    stack = simulation(minimum=2)
    asked: list[tuple[str, ...] | None] = []
    sample = stack.sample

    def note(fleet: Any, instances: Any = None, *, since: float | None = None) -> Sample:
        assert since is not None  # what fired before the version was exercised is not its fault
        asked.append(instances)
        return sample(fleet, instances)

    stack.sample = note  # type: ignore[method-assign]
    deploy(stack.environment(), rolling(bake_s=5.0))
    assert asked == [BLUE[:1], BLUE[1:], BLUE[:2], BLUE[2:], BLUE]


def test_an_instance_that_somebody_took_out_is_drift() -> None:
    stack = simulation(minimum=2)
    stack.taken_out = frozenset({"blue-2"})
    with pytest.raises(DeliveryRefusedError, match="leaves out blue-2"):
        deploy(stack.environment(), blue_green())
    assert stack.store.history == []


def test_a_way_back_to_a_version_asks_no_gate() -> None:
    stack = simulation(samples=itertools.repeat(None))
    done = deploy(stack.environment(), blue_green(gated=False, bake_s=0.0))
    assert (done.green.weight, stack.time) == (100, 0.0)


@given(drawn=SEQUENCES)
@settings(max_examples=300, deadline=None)
def test_any_sequence_of_faults_ends_promoted_or_rolled_back(drawn: Sequence) -> None:
    ends_decided(drawn)


def _at_once(place: str, work: Any) -> Any:
    """Return a fault that does some work, once, at a place."""
    once = _once(work)
    return lambda found: once() if found == place else None


def _once(work: Any) -> Any:
    done: list[bool] = []

    def run() -> None:
        if not done:
            done.append(True)
            work()

    return run


def _raise_once(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return _once(fail)


def _raise_at(place: str, error: BaseException) -> Any:
    def fault(found: str) -> None:
        if found == place:
            raise error

    return fault


def _failing(place: str, *, once: bool) -> Any:
    left = [1 if once else 10**6]

    def fault(found: str) -> None:
        if found == place and left[0]:
            left[0] -= 1
            raise ERRORS[place](f"{place} failed")

    return fault
