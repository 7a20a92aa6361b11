"""What a delivery works with: an `Environment` and the protocols of its parts, which a platform implements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from observatory.delivery.approvals import Approval
from observatory.delivery.counts import Counts
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.errors import ObservatoryError
from observatory.settings import FleetName
from observatory.settings.gate_limits import GateLimits
from observatory.waiting import Clock

PROBE_SECONDS = 2.5  # of the probes of one evaluation


class BalancerError(ObservatoryError):
    """The balancer cannot be read or changed; the message says how it was reached and what to do."""


class HostsError(ObservatoryError):
    """The rollout document's version cannot be installed on a fleet, or the fleet is not healthy."""


class UnjudgedError(HostsError):
    """A version failed a check, and so does the live fleet: what both need is ill, and the version cannot be judged."""


class LostDatabaseError(UnjudgedError):
    """The database accepted writes when the work with a version began, and not to its end.

    Once that is a coincidence. A version with which it happens again and again is the cause.
    """


class MetricsUnavailableError(ObservatoryError):
    """The metrics cannot be read, or have no data about the fleet."""


class RolloutStore(Protocol):
    """The rollout document; see `observatory.documents.rollout`. Every method raises RolloutError.

    Attributes:
        problem: why the last read returned an earlier version than the stored one; empty where it did not, or where a
            read before had the same problem.
    """

    problem: str

    def read(self) -> RolloutDocument | None:
        """Return the document, None where there is none."""

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        """Replace `expected` by `changed` and return it; raise StaleRolloutError if it is not the current one."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Keep other processes from writing to the balancer, where a lock exists that ends with its holder."""


class Releases(Protocol):
    """The versions that may be deployed. Every method raises ReleaseError."""

    def versions(self) -> tuple[str, ...]:
        """Return the stored versions."""

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a stored version."""

    def checked(self, version: str, trusted: Mapping[str, str]) -> Manifest:
        """Return the manifest of a stored version, after a check of its signature and its artifact's digest."""

    def add(self, artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
        """Store a release with a trusted signature; storing it again replaces only the signature."""


class Approvals(Protocol):
    """A stack's approvals of releases. Every method raises ReleaseError."""

    def read(self, manifest: Manifest) -> Approval | None:
        """Return the approval of a release, None where this artifact has none."""

    def write(self, approval: Approval) -> None:
        """Store an approval; it replaces an earlier one of the version."""


class Balancer(Protocol):
    """The load balancer of the fleets. Every method raises BalancerError."""

    def weights(self) -> Mapping[FleetName, int]:
        """Return the traffic weights in percent, read from the balancer itself."""

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Set the traffic weights without interrupting a request; they survive a restart of the balancer."""


class Hosts(Protocol):
    """The machines or processes of the fleets. Every method raises HostsError."""

    def check(self, fleet: FleetName, *, migrated: bool = False) -> None:
        """Check that installing a version on a fleet changes nothing else; `migrated`: after the pending migrations."""

    def install(self, fleet: FleetName, *, repair: bool = False) -> None:
        """Install the rollout document's version on a fleet; return when its instances are ready.

        With `repair` the other fleet may be changed too: to what the document and the settings declare.
        Raises UnjudgedError where it failed while the database did not accept writes, LostDatabaseError where it did
        at first: it may be repeated.
        """

    def verify(self, fleet: FleetName) -> None:
        """Test a fleet apart from its traffic: health, version, writing and reading back.

        Raises UnjudgedError where the other fleet fails, too.
        """

    def healthy(self, fleet: FleetName) -> bool:
        """Return whether all required instances of a fleet are ready."""

    def silent(self, fleet: FleetName) -> str:
        """Return why no instance of a fleet responds; empty where one does, ready or not."""

    def restart(self, fleet: FleetName) -> None:
        """Restart the instances of a fleet that do not respond, without waiting until they are ready.

        Needs neither the database nor an engine.
        """

    def stop(self, fleet: FleetName, *, patient: Callable[[], bool]) -> tuple[str, ...]:
        """Stop what runs on a fleet without traffic, and return the instances that stay stopped.

        Requests in flight may end as long as `patient` returns true; then the instances are killed. Needs neither the
        database nor an engine. Where machines cannot stay stopped, starts to replace them by the document's version and
        returns none.
        """


class Instances(Protocol):
    """The single instances of the fleets, in the balancer and on their machines, for rolling updates.

    They are named as in the rollout document and in metrics, for example `blue-1`.
    """

    def names(self, fleet: FleetName) -> tuple[str, ...]:
        """Return the instances of a fleet, always in the same order; raises HostsError."""

    def draining(self) -> Mapping[FleetName, Collection[str]]:
        """Return the instances that get no new requests, read from the balancer itself; raises BalancerError."""

    def set_draining(self, draining: Mapping[FleetName, Collection[str]]) -> None:
        """Stop new requests to these instances and restore them to all others, without interrupting a request.

        Returns when that is in force, not when the requests in flight have ended. It survives a restart of the
        balancer. Raises BalancerError.
        """

    def drain(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Wait until draining instances have no requests in flight; raises BalancerError.

        Returns after the drain time of the stack's settings at the latest.
        """

    def check(self) -> None:
        """Check that the stack matches the rollout document and the settings; raises HostsError.

        A rolling update replaces instances by an `up`, which would apply other differences with them.
        """

    def install(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Install the rollout document's version on each instance; return when they are ready.

        No other instance of a fleet with traffic may be changed. Raises HostsError; UnjudgedError as `Hosts.install`.
        """

    def verify(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Test each of these draining instances directly: health, version, writing and reading back.

        Raises HostsError; UnjudgedError where the other instances fail, too.
        """

    def ready(self, fleet: FleetName, instances: Collection[str]) -> bool:
        """Return whether all of these instances are ready; raises HostsError."""

    def respond(self, fleet: FleetName, instances: Collection[str]) -> bool:
        """Return whether all of these instances respond, ready or not; raises HostsError."""


class Trial(Protocol):
    """Pre-deployment tests of a version."""

    def test(self, fleet: FleetName, version: str) -> tuple[str, ...]:
        """Run a stored version as an instance of a fleet without traffic, test it, and remove it.

        Returns what was not checked, and why.
        Also removes what an interrupted test has left. Raises HostsError where the version fails, UnjudgedError where
        the live fleet fails, too.
        """


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading of a fleet's metrics, or of some of its instances.

    Attributes:
        counts: of its requests; they only grow from one reading to the next.
        failed_checks: health checks that its instances failed, cumulative; a fleet without traffic has them, too.
        saturation: used share of an instance's capacity, 0 to 1, of the fullest instance; None if unknown.
        memory_bytes: of an instance, on average; None if unknown.
        sessions: of the database that the fleet uses, busy or in a transaction; None if unknown.
        pool: database connections that its pools may have; None if unknown.
        restarts: of its instances, since each was first read with its current version.
        alerts: names of the firing alerts that roll this fleet back.
        missing: metrics that every version must have, or that its manifest promises, and that an instance lacks.
    """

    counts: Counts = field(default_factory=dict)
    failed_checks: float = 0.0
    saturation: float | None = None
    memory_bytes: float | None = None
    sessions: float | None = None
    pool: float | None = None
    restarts: int = 0
    alerts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Metrics(Protocol):
    """The measurements that gates evaluate. Every method raises MetricsUnavailableError.

    Times are seconds since the epoch by the clock of the metrics, not of this process.
    """

    def now(self) -> float:
        """Return the time of the metrics' own clock."""

    def read(
        self,
        fleet: FleetName,
        instances: Collection[str] | None = None,
        *,
        since: float | None = None,
        promised: Collection[str] = (),
    ) -> Reading:
        """Return the current reading of a fleet, or of some of its instances.

        Args:
            fleet: to read.
            instances: of the fleet to read; None is all.
            since: alerts that began before are left out.
            promised: metrics that the version's manifest names.
        """

    def baseline(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, until: float, seconds: float
    ) -> Counts:
        """Return the requests of a fleet in the seconds before a time."""

    def alerts(self, fleet: FleetName, *, since: float | None = None) -> tuple[str, ...]:
        """Return the names of the firing alerts that roll a fleet back and that began after `since`."""

    def outages(self) -> tuple[str, ...]:
        """Return what every fleet depends on and is down, or was within the last minute, with what to read."""


ProbeKind = Literal["unanswered", "error", "refused", "not stored", "not returned", "not shared", "key accepted"]
CERTAIN: frozenset[ProbeKind] = frozenset({"not stored", "not returned", "not shared", "key accepted"})


@dataclass(frozen=True, kw_only=True)
class ProbeFailure:
    """What a version did wrong with a probe while the other fleet did the same right.

    Attributes:
        kind: `unanswered` within its time; `error`, a 5xx; `refused`, another wrong answer, such as 401 to a valid key;
            `not stored`, a 201 whose rows the database does not have; `not returned`, rows of the database that a read
            does not return; `not shared`, rows that only one of the fleets returns; `key accepted`, a random one.
        reason: one sentence with the request, the answer, and what the database has.
    """

    kind: ProbeKind
    reason: str

    @property
    def certain(self) -> bool:
        """Whether neither load nor an ill dependency can be the cause: the database was compared with the answer."""
        return self.kind in CERTAIN


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The result of the probes of one evaluation.

    Attributes:
        attempts: checks of the new version that have a result; `failures` are among them.
        failures: the checks that failed.
        unknown: why this evaluation has no result, for example `the database does not answer`. Then the others are
            empty: an ill database or other fleet is never blamed on the version.
        requests: that the new version got, of which its memory may grow; a check may take many.
    """

    attempts: int = 0
    failures: tuple[ProbeFailure, ...] = ()
    unknown: str | None = None
    requests: int = 0


class Probes(Protocol):
    """Synthetic writes and reads through a fleet during a bake, compared with the database and the other fleet."""

    def probe(self, fleet: FleetName, instances: Collection[str] | None = None, *, version: str) -> ProbeResult:
        """Write through a fleet, or through some of its instances, and read back; remove what was written.

        Never raises and returns within `PROBE_SECONDS`, whatever hangs.
        """


class Silences(Protocol):
    """Silences of alerts during a deployment. Never raises: a failure is recorded in the journal."""

    def moving(self, deployment: str, fleet: FleetName) -> AbstractContextManager[None]:
        """Silence a fleet's alerts during a block; the silence of a killed process soon expires."""

    def end(self, deployment: str) -> None:
        """End the silences of a deployment, also those of a killed process."""


class WallClock(Clock, Protocol):
    """The time for waits, which only grows, and the time of day for the record."""

    def wall(self) -> float:
        """Return seconds since the epoch."""


class Journal(Protocol):
    """The record of every step, which audit, notifications and terminal are fed from. Never raises."""

    def record(self, event: str, **details: Any) -> None:
        """Record an event with its details."""


class HeldLock(Protocol):
    """The deployment lock that this process holds."""

    def check(self, record: Callable[..., None]) -> None:
        """Check that no other process holds the lock; take it again where it was lost and is free.

        A database that does not respond is no loss: no other process can take the lock then. `record` writes what was
        found to the journal. Raises LockLostError.
        """


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that a delivery works with.

    Attributes:
        store: of the rollout document.
        balancer: of the fleets.
        hosts: of the fleets.
        metrics: for the gates.
        silences: of the target's alerts.
        clock: for waits, and for timestamps of the record.
        journal: for every event.
        trial: pre-deployment tests; None on a platform without them.
        instances: for rolling updates; None on a platform without them.
        probes: of the new version during a bake; None on a platform without them.
        lock: the deployment lock; None for a rollback, which needs none.
        promised: returns the metrics that a version's manifest names.
        limits: of the gates.
    """

    store: RolloutStore
    balancer: Balancer
    hosts: Hosts
    metrics: Metrics
    silences: Silences
    clock: WallClock
    journal: Journal
    trial: Trial | None = None
    instances: Instances | None = None
    probes: Probes | None = None
    lock: HeldLock | None = None
    promised: Callable[[str], tuple[str, ...]] = lambda _version: ()
    limits: GateLimits = field(default_factory=GateLimits)
