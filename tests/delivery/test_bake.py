"""The bake of a step: what lets it pass, fails it, or leaves it without a verdict, and how time is counted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.environment import ProbeFailure, ProbeResult, UnjudgedError
from observatory.delivery.errors import DeploymentPausedError, RolledBackError
from observatory.settings.gate_limits import GateLimits
from tests.delivery.environment import BAD, GOOD, Interval, Simulation, counts, simulation
from tests.delivery.faults import OUTAGE, blue_green, canary

SHORT = GateLimits(deadline_s=60, pause_s=60)
LOST = ProbeFailure(kind="not stored", reason="POST /v1/traces answered 201, and the database has no row")


def verdicts(stack: Simulation) -> list[Any]:
    return [details["verdict"] for event, details in stack.events if event == "gate"]


def reasons(stack: Simulation) -> str:
    return str([details["reasons"] for event, details in stack.events if event == "gate"])


def status(stack: Simulation) -> str:
    assert stack.store.document
    assert stack.store.document.deployment
    return stack.store.document.deployment.status


def test_a_bad_version_is_rolled_back_after_three_intervals() -> None:
    stack = simulation(intervals=itertools.repeat(BAD))
    with pytest.raises(RolledBackError, match=r"errors of all routes: 150 of 300 requests, 50\.00%, 0\.\d+% allowed"):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.time == 3 * 5
    document = stack.store.document
    assert document is not None
    assert document.green.version == "v0.1.0"


@pytest.mark.parametrize("third", [GOOD, None, Interval(requests=0)], ids=["good", "no metrics", "no requests"])
def test_bad_bad_and_then_anything_else_for_ever_is_rolled_back(third: Interval | None) -> None:
    stack = simulation(intervals=itertools.cycle([BAD, BAD, third]))
    with pytest.raises(RolledBackError, match="errors of all routes"):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.time <= 6 * 5


@pytest.mark.parametrize(
    ("interval", "name"),
    [
        (Interval(statuses={"404": 12}), "404 of GET /v1/traces"),
        (Interval(statuses={"307": 12}), "307 of GET /v1/traces"),
        (Interval(statuses={"401": 50}), "401 of GET /v1/traces"),
        (Interval(statuses={"422": 20}), "422 of GET /v1/traces"),
        (Interval(statuses={"other": 20}), "other of GET /v1/traces"),
        (Interval(slow=5), "over 1 s of GET /v1/traces"),
        (Interval(errors=2), "errors of all routes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_bad_request_fails_within_a_minute(interval: Interval, name: str) -> None:
    stack = simulation(intervals=itertools.repeat(interval))
    with pytest.raises(RolledBackError, match=name):
        deploy(stack.environment(), blue_green(bake_s=60.0))
    assert stack.time <= 60


def test_an_old_fleet_with_few_requests_and_none_bad_excuses_no_version() -> None:
    """After blue-green's shift the old fleet has the requests of probes only."""
    stack = simulation(intervals=itertools.repeat(Interval(requests=400, errors=6, old_requests=18)))
    with pytest.raises(RolledBackError, match=r"errors of all routes: \d+ of \d+ requests, 1\.50%"):
        deploy(stack.environment(GateLimits(deadline_s=30, pause_s=10)), blue_green(bake_s=30.0))


ONE = (
    *(Interval(errors=1), Interval(slow=1), Interval(old_errors=1)),
    *(Interval(statuses={status: 1}) for status in ("401", "404")),
)


@given(at=st.integers(0, 11), one=st.sampled_from(ONE))
def test_no_single_failed_request_rolls_back(at: int, one: Interval) -> None:
    stack = simulation(intervals=iter([*[GOOD] * at, one]))
    deploy(stack.environment(), blue_green(bake_s=60.0))
    assert stack.time == 60


@given(
    intervals=st.lists(
        st.sampled_from(
            [
                None,
                OUTAGE,
                Interval(missing=("storage_pool_in_use",)),
                Interval(saturation=None),
                Interval(old_errors=50, errors=50),
                Interval(failed_checks=3, errors=100),
            ]
        ),
        min_size=1,
        max_size=10,
    )
)
def test_unknown_never_passes(intervals: list[Interval | None]) -> None:
    stack = simulation(intervals=itertools.cycle(intervals))
    stack.probed = itertools.repeat(ProbeResult())
    with pytest.raises((RolledBackError, DeploymentPausedError)):
        deploy(stack.environment(SHORT), blue_green(bake_s=5.0))
    assert "passed" not in verdicts(stack)


def test_metrics_that_stay_away_pause_and_never_blame_the_version() -> None:
    stack = simulation(intervals=itertools.repeat(None))
    with pytest.raises(DeploymentPausedError, match="is paused and keeps its traffic: no verdict for") as raised:
        deploy(stack.environment(SHORT), blue_green(bake_s=10.0))
    assert raised.value.remedy
    assert (stack.live["green"], status(stack)) == (100, "paused")
    stack.intervals = itertools.repeat(GOOD)
    deploy(stack.environment(SHORT), blue_green(bake_s=10.0))
    assert status(stack) == "promoted"


@pytest.mark.parametrize(
    "ill",
    [OUTAGE, Interval(errors=60, old_errors=60), Interval(slow=0, errors=80, failed_checks=2)],
    ids=["outage", "both fleets fail", "the idle fleet fails its health checks"],
)
def test_a_version_is_not_to_blame_for_what_both_fleets_suffer(ill: Interval) -> None:
    stack = simulation(intervals=iter([GOOD, *[ill] * 8]))
    deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 0, "green": 100}
    assert stack.time >= 30 + 8 * 5


@pytest.mark.parametrize("kind", ["errors", "slow", "404", "401"])
def test_what_began_shortly_before_the_shift_is_not_the_versions_fault(kind: str) -> None:
    bad = {"errors": Interval(errors=30), "slow": Interval(slow=30)}.get(kind, Interval(statuses={kind: 30}))
    stack = simulation(intervals=itertools.repeat(bad))
    statuses = {kind: 150} if kind.isdigit() else {}
    stack.recent = counts(500, errors=150 * (kind == "errors"), slow=150 * (kind == "slow"), statuses=statuses)
    if kind == "errors":  # a share that no version may have is not promoted either
        with pytest.raises(DeploymentPausedError, match="the old version is no better"):
            deploy(stack.environment(SHORT), blue_green())
    else:
        deploy(stack.environment(), blue_green())


@pytest.mark.parametrize(
    ("is_seen", "recent", "end"),
    [
        (True, counts(20, errors=2), DeploymentPausedError),
        (False, counts(20, errors=2), RolledBackError),
        (True, {}, RolledBackError),  # without requests of the old version, its illness excuses nothing
        (True, counts(50), RolledBackError),
    ],
)
def test_an_illness_that_the_checks_saw_excuses_the_version_if_recent_requests_show_it(
    is_seen: bool, recent: Any, end: type[Exception]
) -> None:
    stack = simulation(intervals=itertools.repeat(Interval(errors=11)))
    stack.recent = recent

    def fault(where: str) -> None:
        if is_seen and where == "verify" and stack.time < 10:
            raise UnjudgedError("both fleets are ill")

    stack.fault = fault
    with pytest.raises(end):
        deploy(stack.environment(SHORT), blue_green())


def test_a_long_illness_of_both_fleets_pauses_until_it_ends() -> None:
    stack = simulation(intervals=iter([GOOD, *[OUTAGE] * 30]))
    deploy(stack.environment(), blue_green())
    events = [event for event, _ in stack.events]
    assert events.index("paused") < events.index("continued") < events.index("promoted")
    assert "StorageDatabaseDown" in reasons(stack)


def test_a_paused_deployment_can_be_promoted_and_aborted() -> None:
    for request, expected in (("promote", "promoted"), ("abort", "rolled-back")):
        stack = simulation(intervals=itertools.repeat(OUTAGE))

        def control(stack: Simulation = stack, request: Any = request) -> None:
            if stack.store.document and status(stack) == "paused":
                send_control_request(stack.environment(), request)

        stack.each_sleep = control
        if request == "promote":
            deploy(stack.environment(SHORT), blue_green())
        else:
            with pytest.raises(RolledBackError, match="aborted"):
                deploy(stack.environment(SHORT), blue_green())
        assert status(stack) == expected


@pytest.mark.parametrize(
    "interval", [Interval(missing=("storage_pool_in_use",)), Interval(saturation=None)], ids=["promised", "lost"]
)
def test_a_version_that_lacks_metrics_is_rolled_back_at_the_deadline(interval: Interval) -> None:
    stack = simulation(intervals=itertools.repeat(interval))
    with pytest.raises(RolledBackError, match="the new version has no metric of"):
        deploy(stack.environment(SHORT), blue_green())
    assert 60 < stack.time <= 70


def test_few_requests_are_completed_by_probes() -> None:
    quiet = simulation(intervals=itertools.repeat(Interval(requests=0, old_requests=0)))
    deploy(quiet.environment(), blue_green())
    assert verdicts(quiet)[:3] == ["unknown", "unknown", "passed"]  # 8 probes each, 20 are required
    quiet = simulation(intervals=itertools.repeat(Interval(requests=0, old_requests=0)))
    quiet.probed = itertools.repeat(ProbeResult())
    with pytest.raises(DeploymentPausedError, match="0 requests and probes in the step, at least 20 are required"):
        deploy(quiet.environment(SHORT), blue_green())


def test_probes_that_the_database_contradicts_fail_a_step() -> None:
    stack = simulation()
    stack.probed = itertools.cycle([ProbeResult(attempts=8, failures=(LOST,)), ProbeResult(attempts=8)])
    with pytest.raises(RolledBackError, match="probe: POST /v1/traces answered 201"):
        deploy(stack.environment(), blue_green())
    assert stack.time == 3 * 5


def test_one_failed_probe_fails_nothing() -> None:
    stack = simulation()
    stack.probed = iter([ProbeResult(attempts=8, failures=(LOST,))])
    deploy(stack.environment(), blue_green())


def test_probes_without_a_result_are_not_the_versions_fault() -> None:
    stack = simulation()
    stack.probed = iter([ProbeResult(unknown="the database does not answer the probe")] * 5)
    deploy(stack.environment(), blue_green())
    assert verdicts(stack)[:6] == ["unknown"] * 5 + ["passed"]


def test_a_firing_alert_of_the_new_fleet_alone_fails_a_step() -> None:
    stack = simulation(intervals=itertools.repeat(Interval(alerts=("StorageServiceDown",))))
    with pytest.raises(RolledBackError, match="alert StorageServiceDown is firing"):
        deploy(stack.environment(), blue_green())
    assert stack.time == 3 * 5


def test_a_full_pool_in_two_of_three_evaluations_fails_a_step() -> None:
    full = Interval(saturation=0.95)
    stack = simulation(intervals=itertools.cycle([full, full, GOOD]))
    with pytest.raises(RolledBackError, match="saturation 95%, 90% allowed"):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.time <= 4 * 5


def test_a_version_that_holds_the_sessions_of_both_fleets_is_to_blame_for_their_illness() -> None:
    stack = simulation(intervals=itertools.repeat(Interval(errors=90, old_errors=90, sessions=40)))
    with pytest.raises(RolledBackError, match="the new fleet holds 40 sessions of the database, its pools have 20"):
        deploy(stack.environment(), canary())
    assert stack.time == 3 * 5


def test_slow_evaluations_do_not_delay_the_next_ones() -> None:
    def slow() -> Iterator[Interval]:
        while True:
            stack.time += 3.0
            yield BAD

    stack = simulation(intervals=slow())
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.time == 3 * 5 + 3


def test_an_evaluation_of_a_stopped_process_counts_one_interval() -> None:
    stack = simulation()

    def stopped() -> None:
        stack.time += 61.0  # as by SIGSTOP, in each sleep

    stack.each_sleep = stopped
    deploy(stack.environment(), blue_green(bake_s=60.0))
    assert len(verdicts(stack)) == 60 / 5


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_changes_nothing(jump_s: float) -> None:
    stack = simulation()

    def set_clock() -> None:
        stack.wall_offset += jump_s

    stack.each_sleep = set_clock
    deploy(stack.environment(), blue_green(bake_s=60.0))
    assert (len(verdicts(stack)), stack.time) == (60 / 5, 60.0)


def test_a_step_needs_a_minimum_of_evaluations() -> None:
    stack = simulation()
    deploy(stack.environment(GateLimits(minimum_evaluations=4)), blue_green(bake_s=5.0))
    assert verdicts(stack) == ["passed"] * 4


def test_the_evidence_of_a_canary_is_kept_from_step_to_step() -> None:
    few = Interval(requests=100, errors=1)
    stack = simulation(intervals=itertools.repeat(few))
    with pytest.raises(RolledBackError, match="errors of all routes"):
        deploy(stack.environment(), canary(bake_s=20.0))


def test_an_evaluation_has_numbers_and_limits() -> None:
    stack = simulation(intervals=itertools.repeat(Interval(errors=3)))
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green())
    last = [details for event, details in stack.events if event == "gate"][-1]
    worst = last["findings"][0]
    assert (worst["kind"], worst["decision"], worst["value"]) == ("errors", "failed", 0.03)
    assert 0 < worst["limit"] < 0.01
    assert (last["step"], last["steps"], last["bake_s"]) == (1, 1, 30.0)
    assert last["new"]["requests"] == 100 * len(verdicts(stack))


def test_what_failed_is_recorded_however_much_else_is_undecided() -> None:
    """Probes that failed are found, while many routes may be slow."""
    stack = simulation(intervals=itertools.repeat(Interval(statuses={str(code): 5 for code in range(410, 425)})))
    stack.probed = itertools.repeat(ProbeResult(attempts=4, failures=(LOST,)))
    with pytest.raises(RolledBackError, match="probe: POST"):
        deploy(stack.environment(), blue_green())
    last = [details for event, details in stack.events if event == "gate"][-1]
    assert "probes" in {each["kind"] for each in last["findings"] if each["decision"] == "failed"}


def test_the_metrics_that_a_manifest_promises_are_read_of_the_new_version_only() -> None:
    stack = simulation()
    read, seen = stack.read, []

    def note(fleet: Any, instances: Any = None, *, since: Any = None, promised: Any = ()) -> Any:
        seen.append((fleet, promised))
        return read(fleet, instances)

    stack.read = note  # type: ignore[method-assign]
    environment = dataclasses.replace(stack.environment(), promised=lambda version: (f"metric_of_{version}",))
    deploy(environment, blue_green())
    assert set(seen[2:]) == {("green", ("metric_of_v0.2.0",)), ("blue", ())}
