"""Control requests to a running deployment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.environment import ProbeResult
from observatory.delivery.errors import DeliveryRefusedError, RolledBackError
from observatory.delivery.request import DeploymentRequest
from observatory.documents.rollout import Deployment, Request
from observatory.settings.gate_limits import GateLimits
from tests.delivery.environment import GOOD, SIZE, Interval, Simulation, simulation
from tests.delivery.faults import at_place, blue_green, canary, once, rolling


def test_a_paused_deployment_continues_when_it_is_promoted() -> None:
    stack = simulation()
    sleeps = itertools.count()

    def control() -> None:
        sleep = next(sleeps)
        if sleep == 0:
            send_control_request(stack.environment(), "pause")
        if sleep == 8:
            assert stack.live["green"] == 100
            assert not _deployment(stack).ended
            send_control_request(stack.environment(), "promote")

    stack.each_sleep = control
    deploy(stack.environment(), blue_green(bake_s=10_000.0))
    assert _deployment(stack).status == "promoted"
    assert stack.time < 1000


def pause_until(stack: Simulation, last: int) -> None:
    """Request a pause at the first sleep of the deployment, and to resume at the sleep with this number."""
    sleeps = itertools.count()

    def control() -> None:
        if (sleep := next(sleeps)) in (0, last):
            send_control_request(stack.environment(), None if sleep else "pause")

    stack.each_sleep = control


def test_a_resumed_deployment_bakes_on() -> None:
    stack = simulation()
    pause_until(stack, 20)
    deploy(stack.environment(), blue_green())
    assert _deployment(stack).status == "promoted"
    assert stack.time >= 20 * 5 + 30
    assert [details["request"] for event, details in stack.events if event == "ask"] == ["pause", "resume"]


def test_an_aborted_deployment_is_rolled_back() -> None:
    stack = simulation()
    stack.each_sleep = once(lambda: send_control_request(stack.environment(), "abort"))
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), blue_green())
    assert stack.live["green"] == 0
    with pytest.raises(DeliveryRefusedError, match="no deployment is under way"):
        send_control_request(stack.environment(), "pause")


@pytest.mark.parametrize("request_", ["pause", "promote", None])
def test_an_abort_stands_whatever_another_operator_requests_then(request_: Request | None) -> None:
    stack = simulation()

    def control() -> None:
        send_control_request(stack.environment(), "abort")
        send_control_request(stack.environment(), "abort")
        with pytest.raises(DeliveryRefusedError, match="is to be aborted"):
            send_control_request(stack.environment(), request_)

    stack.each_sleep = once(control)
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), blue_green())


def test_a_rollback_under_way_is_not_paused() -> None:
    stack, refused = simulation(), list[str]()

    def fault(place: str) -> None:
        if place == "stop":
            with pytest.raises(DeliveryRefusedError, match="is being rolled back") as error:
                send_control_request(stack.environment(), "pause")
            refused.append(str(error.value))

    stack.fault = fault
    stack.each_sleep = once(lambda: send_control_request(stack.environment(), "abort"))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green())
    assert refused


@pytest.mark.parametrize("request_", [blue_green(), canary(), rolling()], ids=["blue-green", "canary", "rolling"])
def test_an_abort_during_the_last_evaluation_is_not_lost(request_: DeploymentRequest) -> None:
    """Whatever the moment: an abort that was accepted is followed by a rollback."""
    sent, number = 0, 0
    while sent == number:  # until the deployment ends before evaluation `number`
        stack, evaluations = simulation(minimum=SIZE - 1), itertools.count()

        def abort(evaluation: int = 0, *, stack: Simulation = stack, number: int = number) -> ProbeResult:
            if evaluation == number:
                send_control_request(stack.environment(), "abort")
            return ProbeResult(attempts=8)

        stack.probed = map(abort, evaluations)
        try:
            deploy(stack.environment(), request_)
        except RolledBackError:
            sent += 1
        number += 1
        aborts = [details for event, details in stack.events if event == "ask"]
        assert (_deployment(stack).status == "rolled-back") == bool(aborts)
    assert sent > 1


def test_a_pause_during_the_last_evaluation_keeps_the_step() -> None:
    stack, evaluations = simulation(), itertools.count()
    limits = GateLimits(deadline_s=60)
    last = math.ceil(blue_green().bake_s / limits.interval_s) - 1

    def pause(evaluation: int) -> ProbeResult:
        if evaluation in (last, last + 10):
            send_control_request(stack.environment(), "pause" if evaluation == last else None)
        return ProbeResult(attempts=8)

    stack.probed = map(pause, evaluations)
    deploy(stack.environment(limits), blue_green())
    assert next(evaluations) > last + 10


def test_a_pause_during_the_evaluation_that_a_promotion_ends_keeps_the_step() -> None:
    stack = simulation()
    evaluations = requesting(stack, {1: "promote", 2: "pause", 30: None})
    deploy(stack.environment(), blue_green(bake_s=60.0))
    assert next(evaluations) > 30


@pytest.mark.parametrize("request_", [canary(), rolling()], ids=["canary", "rolling"])
@pytest.mark.parametrize("at", range(12))
def test_a_promotion_ends_the_bake_of_one_step(request_: DeploymentRequest, at: int) -> None:
    """Whatever the moment, also in the last evaluation of a step: the others bake for their whole time."""
    stack, whole = simulation(minimum=SIZE - 1), round(request_.bake_s / GateLimits().interval_s)
    requesting(stack, {at: "promote"})
    deploy(stack.environment(), request_)
    evaluations = bakes(stack)
    assert [count for step, count in enumerate(evaluations) if step != at // whole] == [whole] * (len(evaluations) - 1)
    assert evaluations[at // whole] == min(whole, at % whole + 2)


def bakes(stack: Simulation) -> list[int]:
    """Return the number of evaluations of each step."""
    counts = list[int]()
    for event, _ in stack.events:
        if event in {"shift", "moved"}:
            counts.append(0)
        counts[-1:] = [count + (event == "gate") for count in counts[-1:]]
    return counts


@pytest.mark.parametrize("request_", [blue_green(), canary()], ids=["blue-green", "canary"])
def test_a_pause_before_the_first_step_keeps_all_traffic_on_the_old_fleet(request_: DeploymentRequest) -> None:
    stack, sleeps = simulation(), itertools.count()
    stack.fault = at_place("verify", lambda: send_control_request(stack.environment(), "pause"))

    def control() -> None:
        if next(sleeps) < 20:
            assert stack.live == {"blue": 100, "green": 0}
        elif _deployment(stack).request:
            send_control_request(stack.environment(), None)

    stack.each_sleep = control
    deploy(stack.environment(), request_)
    assert _deployment(stack).status == "promoted"
    assert [event for event, _ in stack.events if event in {"paused", "continued"}] == ["paused", "continued"]


@pytest.mark.parametrize("request_", [blue_green(), canary(), rolling()], ids=["blue-green", "canary", "rolling"])
def test_an_aborted_version_that_has_no_traffic_yet_gets_none(request_: DeploymentRequest) -> None:
    stack = simulation(minimum=SIZE - 1)
    stack.fault = at_place("verify", lambda: send_control_request(stack.environment(), "abort"))
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), request_)
    updated = [event for event, _ in stack.events if event in {"shift", "moved", "gate"}]
    assert (updated, stack.live) == ([], {"blue": 100, "green": 0})


def test_an_abort_ends_a_pause_before_the_first_step() -> None:
    stack = simulation()
    stack.fault = at_place("verify", lambda: send_control_request(stack.environment(), "pause"))
    stack.each_sleep = once(lambda: send_control_request(stack.environment(), "abort"))
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), blue_green())
    assert not any(event == "shift" for event, _ in stack.events)


def requesting(stack: Simulation, sent: dict[int, Request | None]) -> Iterator[int]:
    """Send control requests during the evaluations with these numbers; return the counter of evaluations."""
    evaluations = itertools.count()

    def probe(evaluation: int) -> ProbeResult:
        if evaluation in sent:
            send_control_request(stack.environment(), sent[evaluation])
        return ProbeResult(attempts=8)

    stack.probed = map(probe, evaluations)
    return evaluations


def test_seconds_without_a_verdict_do_not_add_up_over_a_pause() -> None:
    """A version whose metrics are missed now and then in a long pause is not to blame for a deadline."""
    stack = simulation()
    stack.intervals = itertools.chain.from_iterable((Interval(missing=("a",)), GOOD) for _ in range(60))
    pause_until(stack, 100)
    deploy(stack.environment(), blue_green())
    assert _deployment(stack).status == "promoted"


def _deployment(stack: Simulation) -> Deployment:
    assert stack.store.document
    assert stack.store.document.deployment
    return stack.store.document.deployment
