"""A simulated stack for the state machine of deployments: every call can fail, or kill the process."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from observatory.delivery.bake import RECENT_S
from observatory.delivery.counts import Counts, RouteCounts, total
from observatory.delivery.environment import (
    BalancerError,
    Environment,
    HostsError,
    MetricsUnavailableError,
    ProbeResult,
    Reading,
)
from observatory.documents.rollout import RolloutDocument, StaleRolloutError
from observatory.settings import FleetName
from observatory.settings.gate_limits import GateLimits

OLD, NEW = "a" * 64, "b" * 64
SIZE = 3  # instances of each fleet
MEMBERS: dict[FleetName, tuple[str, ...]] = {
    "blue": tuple(f"blue-{number}" for number in range(1, SIZE + 1)),
    "green": tuple(f"green-{number}" for number in range(1, SIZE + 1)),
}
INSTANCES = (*MEMBERS["blue"], *MEMBERS["green"])
ROUTE = "GET /v1/traces"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What the metrics show of the time between two evaluations.

    Attributes:
        requests: of the new version, answered 200 unless they are among the others.
        errors: of them, answered 500.
        statuses: of them, answered otherwise, by status.
        slow: of them, took more than 1 s.
        old_requests: of the old fleet.
        old_errors: of them, answered 500.
        failed_checks: health checks that the old fleet failed.
        saturation: of the new version.
        alerts: that fire for the new version.
        outages: of what both fleets need.
        missing: metrics that the new version lacks.
        sessions: of the database that the new version holds.
    """

    requests: float = 100
    errors: float = 0
    statuses: Mapping[str, float] = field(default_factory=dict)
    slow: float = 0
    old_requests: float = 100
    old_errors: float = 0
    failed_checks: int = 0
    saturation: float | None = 0.1
    alerts: tuple[str, ...] = ()
    outages: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    sessions: float = 5


GOOD, BAD = Interval(), Interval(errors=50)
BASELINE = {ROUTE: RouteCounts(statuses={"200": 5000.0}, durations={0.1: 5000.0, 1.0: 5000.0, math.inf: 5000.0})}


def counts(
    requests: float, *, errors: float = 0, slow: float = 0, statuses: Mapping[str, float] | None = None
) -> Counts:
    """Return the counts of one route."""
    others = {"500": errors, **(statuses or {})}
    answered = {"200": max(0.0, requests - sum(others.values())), **others}
    fast = requests - slow
    return {ROUTE: RouteCounts(statuses=answered, durations={0.1: fast, 1.0: fast, math.inf: requests})}


class Killed(BaseException):
    """The process was killed here, as by SIGKILL."""


@dataclass
class MemoryStore:
    """Compare-and-set as the real store does it."""

    document: RolloutDocument | None
    problem: str = ""
    history: list[RolloutDocument] = field(default_factory=list)
    balancer_lock: threading.Lock = field(default_factory=threading.Lock)
    others: list[threading.Thread] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def read(self) -> RolloutDocument | None:
        return self.document

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        current = self.document
        if current is None or current.revision != expected.revision or changed.fencing < current.fencing:
            raise StaleRolloutError("changed concurrently")
        checked = RolloutDocument.model_validate(changed.model_dump())  # as a file would: weights, digests
        self.document = checked.model_copy(update={"revision": current.revision + 1})
        self.history.append(self.document)
        return self.document

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock as the file store does; a waiting thread runs next, to its end, so that every run is the same."""
        self.stopped.set()
        with self.balancer_lock:
            try:
                yield
            finally:
                waiting, self.others = self.others, []
        for thread in waiting:
            thread.join()

    def meanwhile(self, work: Callable[[], None]) -> None:
        """Run another process until it ends or waits for the balancer's lock."""
        self.stopped.clear()

        def whole() -> None:
            work()
            self.stopped.set()

        thread = threading.Thread(target=whole)
        held = self.balancer_lock.locked()
        if held:
            self.others.append(thread)
        thread.start()
        if held:
            self.stopped.wait()
        else:
            thread.join()


@dataclass
class Simulation:
    """A stack where every call first calls `fault(place)`, which may raise, and whose metrics come from `intervals`.

    At any time, `minimum` instances of a fleet with traffic must be ready and not draining.
    """

    store: MemoryStore
    fault: Callable[[str], None] = lambda _place: None
    intervals: Iterator[Interval | None] = field(default_factory=lambda: iter(()))
    before: Counts = field(default_factory=lambda: BASELINE)
    recent: Counts = field(default_factory=dict)
    live: dict[FleetName, int] = field(default_factory=lambda: {"blue": 100, "green": 0})
    runs: dict[str, str] = field(default_factory=lambda: dict.fromkeys(INSTANCES, OLD))
    up: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(INSTANCES, True))
    taken_out: frozenset[str] = frozenset()
    drained: set[str] = field(default_factory=set)
    minimum: int = SIZE
    time: float = 0.0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    each_sleep: Callable[[], None] = lambda: None
    probed: Iterator[ProbeResult] = field(default_factory=lambda: iter(()))
    wall_offset: float = 1_000_000.0
    interval: Interval | None = GOOD
    new_counts: Counts = field(default_factory=dict)
    old_counts: Counts = field(default_factory=dict)
    failed_checks: float = 0.0
    read_at: float = 0.0
    silenced: set[str] = field(default_factory=set)
    tried: list[tuple[FleetName, str]] = field(default_factory=list)
    unchecked: tuple[str, ...] = ()

    def weights(self) -> Mapping[FleetName, int]:
        self.fault("weights")
        return dict(self.live)

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        self.fault("set_weights")
        for fleet, weight in weights.items():
            growing = weight > self.live[fleet]
            assert not (growing and fleet == "green" and not self.healthy(fleet)), "traffic onto a fleet that is not up"
        self.live = dict(weights)
        self.fault("set_weights, done")

    def draining(self) -> Mapping[FleetName, Collection[str]]:
        self.fault("draining")
        return {fleet: [name for name in self.taken_out if name in MEMBERS[fleet]] for fleet in MEMBERS}

    def set_draining(self, out: Mapping[FleetName, Collection[str]]) -> None:
        self.fault("set_draining")
        wanted = frozenset(name for names in out.values() for name in names)
        for name in self.taken_out - wanted:
            assert self.up[name] or not self.live[_fleet_of(name)], "traffic onto an instance that is not up"
        self.drained -= self.taken_out - wanted
        fewer, self.taken_out = wanted - self.taken_out, wanted
        if any(self.live[_fleet_of(name)] for name in fewer):
            _check_minimum(self)
        self.fault("set_draining, done")

    def drain(self, fleet: FleetName, instances: Collection[str]) -> None:
        self.fault("drain")
        self.drained |= set(instances) & self.taken_out  # after a takeover, the batch may have traffic again

    def names(self, fleet: FleetName) -> tuple[str, ...]:
        return MEMBERS[fleet]

    def check(self, fleet: FleetName | None = None, *, migrated: bool = False) -> None:
        self.fault("check")

    def silent(self, fleet: FleetName) -> str:
        self.fault("silent")
        return "" if any(self.up[name] for name in MEMBERS[fleet]) else "every instance is down"

    def restart(self, fleet: FleetName) -> None:
        self.fault("restart")
        self.up.update(dict.fromkeys(MEMBERS[fleet], True))

    def stop(self, fleet: FleetName, *, patient: Callable[[], bool]) -> tuple[str, ...]:
        assert not self.live[fleet], "a fleet with traffic was stopped"
        self.fault("stop")
        patient()
        self.up.update(dict.fromkeys(MEMBERS[fleet], False))
        self.fault("stop, done")
        return MEMBERS[fleet]

    def install(self, fleet: FleetName, instances: Collection[str] | None = None, *, repair: bool = False) -> None:
        """Install the document's versions, as `up` does: instances that differ are stopped first."""
        chosen = _chosen(fleet, instances)
        assert not self.live[fleet] or set(chosen) <= self.drained, "an instance with traffic was changed"
        for name in chosen:
            self.up[name] = False
        _check_minimum(self)
        self.fault("install")
        assert self.store.document
        for name in chosen:
            self.runs[name] = self.store.document.fleet(fleet).release(name).sha256
            self.up[name] = True
        _check_in_sync(self, fleet)

    def test(self, fleet: FleetName, version: str) -> tuple[str, ...]:
        self.fault("test")
        self.tried.append((fleet, version))
        return self.unchecked

    def verify(self, fleet: FleetName, instances: Collection[str] | None = None) -> None:
        self.fault("verify")

    def healthy(self, fleet: FleetName) -> bool:
        return self.ready(fleet, MEMBERS[fleet])

    def respond(self, fleet: FleetName, instances: Collection[str]) -> bool:
        return self.ready(fleet, instances)

    def ready(self, _fleet: FleetName, instances: Collection[str]) -> bool:
        return all(self.up[name] for name in instances)

    def read(
        self,
        fleet: FleetName,
        instances: Collection[str] | None = None,
        *,
        since: float | None = None,
        promised: Collection[str] = (),
    ) -> Reading:
        self.fault("read")
        if self.time > self.read_at:  # all readings of one evaluation are of the same time
            self._advance()
            self.read_at = self.time
        if self.interval is None:
            raise MetricsUnavailableError("no data")
        if not any(self.runs[name] == NEW for name in _chosen(fleet, instances)):
            return Reading(counts=self.old_counts, failed_checks=self.failed_checks, saturation=0.1, memory_bytes=1e8)
        return Reading(
            counts=self.new_counts,
            saturation=self.interval.saturation,
            memory_bytes=1e8,
            alerts=self.interval.alerts,
            missing=self.interval.missing,
            sessions=self.interval.sessions,
            pool=20,
        )

    def _advance(self) -> None:
        self.interval = found = next(self.intervals, GOOD)
        if found:
            new = counts(found.requests, errors=found.errors, slow=found.slow, statuses=found.statuses)
            self.new_counts = total([self.new_counts, new])
            self.old_counts = total([self.old_counts, counts(found.old_requests, errors=found.old_errors)])
            self.failed_checks += found.failed_checks

    def baseline(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, until: float, seconds: float
    ) -> Counts:
        self.fault("baseline")
        return self.recent if seconds == RECENT_S else self.before

    def alerts(self, fleet: FleetName, *, since: float | None = None) -> tuple[str, ...]:
        if self.interval is None:
            raise MetricsUnavailableError("no data")
        return self.interval.alerts

    def outages(self) -> tuple[str, ...]:
        self.fault("outages")
        if self.interval is None:
            raise MetricsUnavailableError("no data")
        return self.interval.outages

    def probe(self, fleet: FleetName, instances: Collection[str] | None = None, *, version: str) -> ProbeResult:
        return next(self.probed, ProbeResult(attempts=8))

    @contextmanager
    def moving(self, deployment: str, fleet: FleetName) -> Iterator[None]:
        """Silence alerts until the block ends; a killed process leaves the silence."""
        self.silenced.add(deployment)
        try:
            self.fault("silence")
            yield
        except Killed:
            raise
        except BaseException:
            self.end(deployment)
            raise
        self.end(deployment)

    def end(self, deployment: str) -> None:
        self.silenced.discard(deployment)

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.wall_offset + self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.each_sleep()
        self.fault("sleep")

    def record(self, event: str, **details: Any) -> None:
        self.events.append((event, details))
        self.fault(f"record {event}")

    def environment(self, limits: GateLimits | None = None) -> Environment:
        return Environment(
            store=self.store,
            balancer=self,
            hosts=self,
            metrics=self,
            silences=self,
            clock=self,
            journal=self,
            trial=self,
            instances=self,
            probes=self,
            limits=limits or GateLimits(deadline_s=60),
        )


def _chosen(fleet: FleetName, instances: Collection[str] | None) -> tuple[str, ...]:
    return MEMBERS[fleet] if instances is None else tuple(instances)


def _fleet_of(instance: str) -> FleetName:
    return "blue" if instance in MEMBERS["blue"] else "green"


def _check_minimum(stack: Simulation) -> None:
    """Check that every fleet with traffic has enough instances for it."""
    for fleet, members in MEMBERS.items():
        available = [name for name in members if stack.up[name] and name not in stack.taken_out]
        assert not stack.live[fleet] or len(available) >= stack.minimum, f"{fleet} has only {available}"


def _check_in_sync(stack: Simulation, fleet: FleetName) -> None:
    """Check that an `up` at this moment would change no instance with traffic."""
    assert stack.store.document
    state = stack.store.document.fleet(fleet)
    for name in MEMBERS[fleet] if stack.live[fleet] else ():
        assert name in stack.drained or stack.runs[name] == state.release(name).sha256, f"{name} differs"


def simulation(*, store: MemoryStore | None = None, **options: Any) -> Simulation:
    """Return a stack with the old version on both fleets and all traffic on blue."""
    first = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
    return Simulation(store or MemoryStore(first), **options)


ERRORS: dict[str, type[Exception]] = {
    "weights": BalancerError,
    "set_weights": BalancerError,
    "set_weights, done": BalancerError,
    "test": HostsError,
    "draining": BalancerError,
    "set_draining": BalancerError,
    "set_draining, done": BalancerError,
    "drain": BalancerError,
    "check": HostsError,
    "install": HostsError,
    "verify": HostsError,
    "read": MetricsUnavailableError,
    "baseline": MetricsUnavailableError,
    "outages": MetricsUnavailableError,
    "silent": HostsError,
    "restart": HostsError,
    "stop": HostsError,
    "stop, done": HostsError,
}
