"""Deployments under faults: random sequences of faults, and the invariants that hold at their end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from observatory.delivery.deployment import deploy
from observatory.delivery.environment import BalancerError
from observatory.delivery.errors import (
    DeliveryRefusedError,
    DeploymentPausedError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
    TrialFailedError,
)
from observatory.delivery.request import DeploymentRequest, canary_weights
from observatory.delivery.rollback import roll_back
from observatory.documents.rollout import FleetState, RolloutDocument, Strategy, other
from tests.delivery.environment import (
    BAD,
    ERRORS,
    GOOD,
    MEMBERS,
    NEW,
    OLD,
    SIZE,
    Interval,
    Killed,
    MemoryStore,
    Simulation,
    simulation,
)

EXPECTED = (
    DeploymentPausedError,
    RolledBackError, RollbackFailedError, TakenOverError, TrialFailedError, DeliveryRefusedError, BalancerError,
)  # fmt: skip
PLACES = (*ERRORS, "sleep", "silence", "record start")
MOST_CALLS = 12  # the last call of a place at which a fault is drawn


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One run under faults.

    Attributes:
        strategy: of the deployment.
        batch_size: of a rolling update.
        faults: number of the call, its place, and what happens there.
        intervals: metrics of the new version, evaluation by evaluation; then they are good.
        recover: what the operator does after the process was killed.
    """

    strategy: Strategy
    batch_size: int
    faults: list[tuple[int, str, str]]
    intervals: list[Interval | None]
    recover: str


SEQUENCES = st.builds(
    Sequence,
    strategy=st.sampled_from(["blue-green", "canary", "rolling"]),
    batch_size=st.integers(1, SIZE - 1),
    faults=st.lists(
        st.tuples(
            st.integers(0, MOST_CALLS),
            st.sampled_from(PLACES),
            st.sampled_from(["error", "kill", "interrupt", "take over"]),
        ),
        max_size=5,
    ),
    intervals=st.lists(st.sampled_from([GOOD, GOOD, GOOD, BAD, None]), max_size=30),
    recover=st.sampled_from(["rerun", "rollback"]),
)


def blue_green(**changes: Any) -> DeploymentRequest:
    defaults: dict[str, Any] = {
        "version": "v0.2.0", "sha256": NEW, "strategy": "blue-green", "bake_s": 30.0, "actor": "test",
    }  # fmt: skip
    return DeploymentRequest(**{**defaults, **changes})


def canary(**changes: Any) -> DeploymentRequest:
    return blue_green(strategy="canary", weights=canary_weights(5, (5, 25, 50, 100)), **changes)


def rolling(**changes: Any) -> DeploymentRequest:
    return blue_green(strategy="rolling", **changes)


def ends_decided(drawn: Sequence, store: MemoryStore | None = None) -> str:
    """Run a deployment under faults, rerun it or roll it back as an operator would, and check the end.

    Args:
        drawn: the deployment and its faults.
        store: with a first document; None for one in memory.

    Returns:
        The result: `refused`, `promoted` or `rolled-back`.
    """
    wanted = {"blue-green": blue_green, "canary": canary, "rolling": rolling}[drawn.strategy](
        batch_size=drawn.batch_size
    )
    minimum = SIZE - drawn.batch_size if drawn.strategy == "rolling" else SIZE
    stack = simulation(store=store, intervals=iter(drawn.intervals), minimum=minimum)
    stack.fault = _faults(stack, drawn.faults)
    killed = quietly(lambda: deploy(stack.environment(), wanted))
    for _ in range(len(drawn.faults) + 1):
        if not _document(stack).unfinished:
            break
        if drawn.recover == "rerun":
            killed = quietly(lambda: deploy(stack.environment(), wanted))
        else:
            killed = quietly(lambda: roll_back(stack.environment(), actor="me", reason="it died"))
    assert killed or not stack.silenced
    ended = any(kind in {"kill", "interrupt"} for _, _, kind in drawn.faults)
    return _decided(stack, ended=ended)


def _faults(stack: Simulation, drawn: list[tuple[int, str, str]]) -> Callable[[str], None]:
    waiting = {(place, number): kind for number, place, kind in drawn}
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
            meanwhile(stack)

    return fault


def _decided(stack: Simulation, *, ended: bool) -> str:
    """Check that the deployment has ended, and that the stack matches the document.

    A process that restores the idle fleet and fails may leave that in maintenance, and one that `ended` while it
    started a fleet that another process stopped may leave that running: the next `up` repairs both.
    """
    document = _document(stack)
    fencings = [revision.fencing for revision in stack.store.history]
    assert fencings == sorted(fencings)
    assert stack.live == document.weights
    stopped = {name for fleet in MEMBERS for name in document.fleet(fleet).stopped}
    assert stopped <= stack.taken_out <= set(MEMBERS[other(document.active_fleet)])
    assert ended or not any(stack.up[name] for name in stopped)
    assert all(document.fleet(fleet).rolling is None for fleet in MEMBERS)
    active = document.active_fleet
    assert {stack.runs[name] for name in MEMBERS[active]} == {document.fleet(active).sha256}
    assert stack.healthy(active)
    if document.deployment is None:
        assert document.weights == {"blue": 100, "green": 0}
        return "refused"
    promoted = document.deployment.status == "promoted"
    assert promoted or document.deployment.status == "rolled-back"
    assert document.fleet(active).sha256 == (NEW if promoted else OLD)
    return document.deployment.status


def _document(stack: Simulation) -> RolloutDocument:
    assert stack.store.document
    return stack.store.document


def meanwhile(stack: Simulation) -> None:
    """Roll back from another process."""

    def rollback() -> None:
        quietly(lambda: roll_back(stack.environment(), actor="other", reason="pages"))

    stack.store.meanwhile(rollback)


def quietly(work: Callable[[], object]) -> bool:
    """Run a command to any expected end; return whether it was killed."""
    try:
        with contextlib.suppress(KeyboardInterrupt, *EXPECTED):
            work()
    except Killed:
        return True
    return False


OUTAGE = Interval(
    errors=100, alerts=("StorageServiceDown",), outages=("the database is down: see the alert StorageDatabaseDown",)
)


def shifts(stack: Simulation) -> list[int]:
    return [details["weights"]["green"] for event, details in stack.events if event == "shift"]


def batches(stack: Simulation) -> list[tuple[str, ...]]:
    return [details["instances"] for event, details in stack.events if event.startswith("moved")]


def blue_of(stack: Simulation) -> FleetState:
    assert stack.store.document
    return stack.store.document.blue


def once(work: Any) -> Any:
    done: list[bool] = []

    def run() -> None:
        if not done:
            done.append(True)
            work()

    return run


def at_place(place: str, work: Any) -> Any:
    """Return a fault that does some work, once, at a place."""
    run = once(work)
    return lambda found: run() if found == place else None


def raise_once(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return once(fail)


def raise_at(place: str, error: BaseException) -> Any:
    def fault(found: str) -> None:
        if found == place:
            raise error

    return fault


def failing(place: str, *, once: bool) -> Any:
    left = [1 if once else 10**6]

    def fault(found: str) -> None:
        if found == place and left[0]:
            left[0] -= 1
            raise ERRORS[place](f"{place} failed")

    return fault
