"""A control request is acknowledged by the running command, and an interrupted command says what it has changed."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest

from observatory.delivery.control import acknowledges, is_replaced, send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import RolledBackError
from observatory.documents.rollout import Request, RolloutDocument, RolloutError
from observatory.operations.interrupted_delivery import outcome_of
from tests.delivery.environment import MemoryStore, simulation
from tests.delivery.faults import blue_green, once


@pytest.mark.parametrize("request_", ["pause", "promote", "abort", None])
def test_a_request_is_acknowledged_when_the_running_command_has_read_it(request_: Request | None) -> None:
    stack, sleeps, found = simulation(), itertools.count(), dict[str, bool]()
    asked = 0

    def follows() -> bool:
        assert stack.store.document is not None
        assert stack.store.document.deployment is not None
        return acknowledges(stack.store.document.deployment, request_, asked=asked)

    def control() -> None:
        nonlocal asked
        sleep = next(sleeps)
        if sleep == 0 and request_ is None:
            send_control_request(stack.environment(), "pause")
        if sleep == 2:
            sent = send_control_request(stack.environment(), request_).deployment
            assert sent is not None
            asked = sent.asked
            found["at once"] = follows()
        if sleep == 4 and request_ == "pause":
            found["paused"] = follows()
            send_control_request(stack.environment(), "abort")

    stack.each_sleep = control
    with suppress(RolledBackError):
        deploy(stack.environment(), blue_green(bake_s=60.0))
    assert found["at once"] is False
    assert found.get("paused", True)
    assert follows()


@pytest.mark.parametrize(
    ("request_", "follows"), [("pause", False), ("promote", True), ("abort", False), (None, False)]
)
def test_a_request_that_a_promotion_forestalled_is_not_followed(request_: Request | None, follows: bool) -> None:
    done = deploy(simulation().environment(), blue_green()).deployment
    assert done is not None
    assert acknowledges(done, request_, asked=1) is follows


def test_a_request_that_another_one_has_replaced_is_not_acknowledged() -> None:
    """The command reads only the newest request: it must not be said to follow an earlier one."""
    stack, asked = simulation(), list[int]()
    requests: tuple[Request, ...] = ("pause", "promote")

    def control() -> None:
        for request in requests:
            sent = send_control_request(stack.environment(), request).deployment
            assert sent is not None
            asked.append(sent.asked)

    stack.each_sleep = once(control)
    done = deploy(stack.environment(), blue_green(bake_s=60.0)).deployment
    assert done is not None
    pause, promote = asked
    assert (acknowledges(done, "pause", asked=pause), is_replaced(done, asked=pause)) == (False, True)
    assert (acknowledges(done, "promote", asked=promote), is_replaced(done, asked=promote)) == (True, False)


def test_a_request_is_followed_where_its_acknowledgement_cannot_be_written() -> None:
    stack = simulation(store=UnheardStore(simulation().store.document))
    stack.each_sleep = once(lambda: send_control_request(stack.environment(), "promote"))
    assert deploy(stack.environment(), blue_green(bake_s=600.0)).active_fleet == "green"
    assert stack.time < 600


class UnheardStore(MemoryStore):
    """A store that takes no acknowledgement."""

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        before, after = expected.deployment, changed.deployment
        if before and after and before.id == after.id and before.heard != after.heard:
            raise RolloutError("no space left on device")
        return super().compare_and_set(expected, changed)


def test_what_an_interrupted_deployment_has_changed() -> None:
    stack = simulation()
    before = stack.store.read()
    assert outcome_of(before, before) == "the fleets and their traffic were not changed"

    def interrupt() -> None:
        raise KeyboardInterrupt

    stack.each_sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), blue_green(bake_s=60.0))
    after = stack.store.read()
    assert after is not None
    assert after.deployment is not None
    version = after.deployment.version
    assert outcome_of(before, after) == f"{version} was rolled back: blue has 100 % of the traffic"
    unfinished = after.deployment.model_copy(update={"status": "shifting"})
    text = outcome_of(before, after.model_copy(update={"deployment": unfinished}))
    assert text.startswith(f"the deployment of {version} to green is shifting (blue 100 %, green 0 %): run the same")
