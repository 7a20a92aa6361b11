"""The deployment's state machine: it ends promoted or rolled back, whatever fails, dies or interferes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory.delivery.deployment import (
    DeliveryRefusedError,
    Order,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
    TrialFailedError,
    ask,
    canary_weights,
    deploy,
    roll_back,
)
from observatory.delivery.protocols import BalancerError, Sample
from tests.delivery.world import BAD, ERRORS, GOOD, NEW, OLD, Killed, MemoryStore, Simulation, simulation


def order(**changes: Any) -> Order:
    wanted: dict[str, Any] = {
        "version": "v0.2.0", "sha256": NEW, "strategy": "blue-green", "bake_s": 30.0, "actor": "test",
    }  # fmt: skip
    return Order(**{**wanted, **changes})


def canary(**changes: Any) -> Order:
    return order(strategy="canary", weights=canary_weights(5, (5, 25, 50, 100)), **changes)


def shifts(stack: Simulation) -> list[int]:
    return [details["weights"]["green"] for event, details in stack.events if event == "shift"]


def test_blue_green_moves_all_traffic_and_keeps_the_old_fleet_warm() -> None:
    stack = simulation()
    done = deploy(stack.world(), order())
    assert done.deployment is not None
    assert (done.deployment.status, stack.live, stack.runs) == (
        "promoted", {"blue": 0, "green": 100}, {"blue": OLD, "green": NEW},
    )  # fmt: skip
    assert stack.time >= 30
    assert stack.store.document == done


def test_a_version_is_tried_before_anything_moves_and_the_document_says_so() -> None:
    stack = simulation()
    done = deploy(stack.world(), order())
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
        deploy(stack.world(), order())
    assert stack.store.document == before
    assert (stack.live, stack.runs) == ({"blue": 100, "green": 0}, {"blue": OLD, "green": OLD})
    assert [event for event, _ in stack.events] == ["tests-failed"]


def test_skipped_tests_are_recorded() -> None:
    stack = simulation(fault=_failing("test", once=True))
    done = deploy(stack.world(), order(skip_tests=True))
    assert done.deployment is not None
    assert done.deployment.tests == "skipped"
    assert stack.events[0][0] == "tests-skipped"


def test_where_nothing_can_be_tried_apart_that_must_be_said() -> None:
    stack = simulation()
    world = dataclasses.replace(stack.world(), trial=None)
    with pytest.raises(DeliveryRefusedError, match="--skip-tests brings it without"):
        deploy(world, order())
    assert stack.store.history == []
    deploy(world, order(skip_tests=True))


def test_a_deployment_that_goes_on_after_a_kill_is_not_tried_again() -> None:
    stack = simulation(fault=_raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.world(), order())
    stack.fault = _failing("test", once=True)
    assert deploy(stack.world(), order()).green.weight == 100


def test_a_canary_goes_by_its_steps_and_bakes_each() -> None:
    stack = simulation()
    deploy(stack.world(), canary())
    assert shifts(stack) == [5, 25, 50, 100]
    assert stack.time >= 4 * 30


@pytest.mark.parametrize("first", [0, 100, 101, -5])
def test_a_canary_out_of_range_is_refused(first: int) -> None:
    with pytest.raises(DeliveryRefusedError, match="between 1 and 99"):
        canary_weights(first, (25, 100))


def test_the_third_bad_look_in_a_row_rolls_back() -> None:
    stack = simulation(samples=iter([GOOD, BAD, BAD, GOOD, BAD, BAD, BAD]))
    with pytest.raises(RolledBackError, match=r"50\.00% errors"):
        deploy(stack.world(), order(bake_s=600.0))
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.time == 7 * 5
    document = stack.store.document
    assert document is not None
    assert document.green.version == "v0.1.0"
    assert document.deployment is not None
    assert document.deployment.status == "rolled-back"


def test_no_data_never_promotes_but_rolls_back_at_the_deadline() -> None:
    stack = simulation(samples=itertools.repeat(None))
    with pytest.raises(RolledBackError, match="no verdict"):
        deploy(stack.world(), order(bake_s=10.0))
    assert stack.time > 60
    assert stack.live["green"] == 0


def test_nan_is_not_a_pass() -> None:
    nan = Sample(requests=500, error_ratio=float("nan"), p95_s=0.01, saturation=0.1, restarts=0)
    stack = simulation(samples=itertools.repeat(nan))
    with pytest.raises(RolledBackError, match="no number"):
        deploy(stack.world(), order(bake_s=10.0))


def test_too_little_traffic_is_probed() -> None:
    little = Sample(requests=1, error_ratio=0.0, p95_s=0.01, saturation=0.0, restarts=0)
    stack = simulation(samples=iter([little, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]))
    deploy(stack.world(), order())
    assert stack.probed == 20


def test_a_firing_alert_of_the_fleet_fails_a_step() -> None:
    alarmed = Sample(
        requests=0, error_ratio=0.0, p95_s=None, saturation=0.0, restarts=0, alerts=("StorageServiceDown",)
    )
    stack = simulation(samples=itertools.repeat(alarmed))
    with pytest.raises(RolledBackError, match="StorageServiceDown"):
        deploy(stack.world(), order())


OUTAGE = Sample(
    requests=500, error_ratio=1.0, p95_s=None, saturation=0.0, restarts=0,
    alerts=("StorageServiceDown",), database_down=True,
)  # fmt: skip


def test_an_outage_of_the_database_pauses_a_step_and_is_not_the_versions_fault() -> None:
    stack = simulation(samples=iter([GOOD, *[OUTAGE] * 8]))
    deploy(stack.world(), order())
    assert stack.live == {"blue": 0, "green": 100}
    assert stack.time >= 30 + 8 * 5
    reasons = [details["reasons"] for event, details in stack.events if event == "gate"]
    assert ("the database does not answer, or did not lately: see StorageDatabaseDown",) in reasons
    assert stack.probed == 0


def test_an_outage_of_the_database_beyond_the_deadline_rolls_back() -> None:
    stack = simulation(samples=itertools.repeat(OUTAGE))
    with pytest.raises(RolledBackError, match=r"no verdict for .* StorageDatabaseDown"):
        deploy(stack.world(), order())


def test_a_fleet_that_fails_its_verification_never_gets_traffic() -> None:
    stack = simulation(fault=_failing("verify", once=True))
    with pytest.raises(RolledBackError):
        deploy(stack.world(), order())
    assert shifts(stack) == []


def test_interrupted_is_rolled_back() -> None:
    stack = simulation()
    stack.each_sleep = _raise_once(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.world(), order())
    assert stack.live == {"blue": 100, "green": 0}


def test_rollback_from_another_terminal_takes_over() -> None:
    stack = simulation()
    stack.each_sleep = _once(lambda: roll_back(stack.world(), actor="other", reason="pages"))
    with pytest.raises(TakenOverError):
        deploy(stack.world(), order())
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
            _meanwhile(stack)

    stack.fault = meddle
    with pytest.raises(TakenOverError):
        deploy(stack.world(), order())
    assert stack.live == {"blue": 100, "green": 0}


def test_rollback_after_promotion() -> None:
    stack = simulation()
    deploy(stack.world(), order())
    roll_back(stack.world(), actor="me", reason="latency")
    assert stack.live == {"blue": 100, "green": 0}
    with pytest.raises(DeliveryRefusedError, match="rolled back already"):
        roll_back(stack.world(), actor="me", reason="again")


def test_nothing_to_roll_back() -> None:
    with pytest.raises(DeliveryRefusedError, match="no deployment"):
        roll_back(simulation().world(), actor="me", reason="panic")


def test_a_rollback_to_a_sick_fleet_says_so() -> None:
    stack = simulation()
    deploy(stack.world(), order())
    stack.ready["blue"] = False
    with pytest.raises(RollbackFailedError, match="blue is not healthy"):
        roll_back(stack.world(), actor="me", reason="latency")
    assert any(event == "escalate" for event, _ in stack.events)


def test_the_fleet_that_serves_is_no_target() -> None:
    with pytest.raises(DeliveryRefusedError, match="deploy to green"):
        deploy(simulation().world(), order(target="blue"))


def test_drift_is_refused_unless_accepted() -> None:
    stack = simulation()
    stack.live = {"blue": 60, "green": 40}
    with pytest.raises(DeliveryRefusedError, match="blue 60 %, green 40 %"):
        deploy(stack.world(), order())
    assert stack.store.history == []
    deploy(stack.world(), order(accept_drift=True))
    assert stack.live["green"] == 100


def test_another_version_waits_for_the_one_under_way() -> None:
    stack = simulation(fault=_raise_at("sleep", Killed()))
    with pytest.raises(Killed):
        deploy(stack.world(), order())
    stack.fault = lambda _place: None
    with pytest.raises(DeliveryRefusedError, match=r"v0\.2\.0 to green is shifting"):
        deploy(stack.world(), order(version="v0.3.0", sha256="c" * 64))


def test_the_version_that_serves_is_left_alone() -> None:
    stack = simulation()
    deploy(stack.world(), order())
    before = list(stack.store.history)
    deploy(stack.world(), order())
    assert stack.store.history == before


def test_requests_from_another_terminal() -> None:
    stack = simulation()
    asked = iter(["pause", None, None, None, None, None, None, None, "promote"])

    def meddle() -> None:
        request = next(asked, "none")
        if request == "none":
            return
        if request or stack.time > 40:
            ask(stack.world(), request)

    stack.each_sleep = meddle
    deploy(stack.world(), order(bake_s=10_000.0))
    assert stack.live["green"] == 100
    assert stack.time < 1000


def test_abort_from_another_terminal() -> None:
    stack = simulation()
    stack.each_sleep = _once(lambda: ask(stack.world(), "abort"))
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.world(), order())
    assert stack.live["green"] == 0
    with pytest.raises(DeliveryRefusedError, match="no deployment is under way"):
        ask(stack.world(), "pause")


EXPECTED = (
    RolledBackError, RollbackFailedError, TakenOverError, TrialFailedError, DeliveryRefusedError, BalancerError,
)  # fmt: skip
PLACES = (*ERRORS, "sleep")
FAULTS = st.lists(
    st.tuples(
        st.integers(0, 12), st.sampled_from(PLACES), st.sampled_from(["error", "kill", "interrupt", "take over"])
    ),
    max_size=5,
)
SAMPLES = st.lists(st.sampled_from([GOOD, GOOD, GOOD, BAD, None]), max_size=30)


@given(faults=FAULTS, samples=SAMPLES, gradual=st.booleans(), recover=st.sampled_from(["rerun", "rollback"]))
@settings(max_examples=300, deadline=None)
def test_any_sequence_of_faults_ends_promoted_or_rolled_back(
    faults: list[tuple[int, str, str]], samples: list[Sample | None], gradual: bool, recover: str
) -> None:
    ends_decided(faults, samples, gradual=gradual, recover=recover)


def ends_decided(
    faults: list[tuple[int, str, str]],
    samples: list[Sample | None],
    *,
    gradual: bool,
    recover: str,
    store: MemoryStore | None = None,
) -> None:
    """Run a deployment under faults; then, as an operator would, rerun it or roll it back; look at the end."""
    stack = Simulation(store, samples=iter(samples)) if store else simulation(samples=iter(samples))
    waiting = {(place, number): kind for number, place, kind in faults}
    seen: dict[str, int] = {}

    def fault(place: str) -> None:
        seen[place] = seen.get(place, -1) + 1
        kind = waiting.pop((place, seen[place]), None)
        if kind == "kill":
            raise Killed
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "error" and place in ERRORS:
            raise ERRORS[place](f"{place} failed")
        if kind == "take over":
            _meanwhile(stack)

    stack.fault = fault
    wanted = canary() if gradual else order()
    killed = _quietly(lambda: deploy(stack.world(), wanted))
    for _ in range(len(faults) + 1):
        document = stack.store.document
        assert document is not None
        if document.deployment is None or document.deployment.ended:
            break
        again = (lambda: deploy(stack.world(), wanted)) if recover == "rerun" else (
            lambda: roll_back(stack.world(), actor="me", reason="it died")
        )  # fmt: skip
        killed = _quietly(again)
    assert killed or not stack.silenced
    document = stack.store.document
    assert document is not None
    if document.deployment is None:
        assert stack.live == {"blue": 100, "green": 0}
        return
    assert document.deployment.status in {"promoted", "rolled-back"}
    assert stack.live == document.weights
    assert stack.live["green"] == (100 if document.deployment.status == "promoted" else 0)
    fencings = [revision.fencing for revision in stack.store.history]
    assert fencings == sorted(fencings)


def _meanwhile(stack: Simulation) -> None:
    """Roll back from another process."""

    def other() -> None:
        _quietly(lambda: roll_back(stack.world(), actor="other", reason="pages"))

    stack.store.meanwhile(other)


def _quietly(work: Any) -> bool:
    """Do it, and tell whether it was killed."""
    try:
        with contextlib.suppress(KeyboardInterrupt, *EXPECTED):
            work()
    except Killed:
        return True
    return False


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
