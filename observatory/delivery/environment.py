"""What a delivery works with: an `Environment` and the protocols of its parts, which a platform implements."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from observatory.delivery.approvals import Approval
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.errors import ObservatoryError
from observatory.settings import FleetName
from observatory.settings.gates import Limits


class BalancerError(ObservatoryError):
    """The balancer cannot be told or asked; the message says how it was reached and what to look at."""


class HostsError(ObservatoryError):
    """A fleet cannot be brought to what the rollout document says, or is not healthy."""


class MetricsUnavailableError(ObservatoryError):
    """Nothing is known about a fleet: the metrics cannot be asked, or have no answer."""


class RolloutStore(Protocol):
    """The rollout document; see `observatory.documents.rollout`."""

    def read(self) -> RolloutDocument | None:
        """Return the document, or None where there is none."""

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        """Replace `expected` by `changed`; raise StaleRolloutError where it is not what stands."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Keep everybody else from telling the balancer, where a lock can be had that is free once its holder dies."""


class Releases(Protocol):
    """The versions that may be deployed. Every method raises ReleaseError."""

    def versions(self) -> tuple[str, ...]:
        """Return the kept versions."""

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a kept version."""

    def checked(self, version: str, trusted: Mapping[str, str]) -> Manifest:
        """Return the manifest of a kept version that is whole and signed by somebody trusted, whoever added it."""

    def add(self, artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
        """Keep a release that somebody trusted has signed; the same one again changes nothing but its signature."""


class Approvals(Protocol):
    """A stack's approvals of releases. Every method raises ReleaseError."""

    def read(self, manifest: Manifest) -> Approval | None:
        """Return the approval of a release, or None where nobody has approved this artifact."""

    def write(self, approval: Approval) -> None:
        """Keep an approval; an earlier one of the version is replaced."""


class Balancer(Protocol):
    """What divides the traffic. Every method raises BalancerError."""

    def weights(self) -> Mapping[FleetName, int]:
        """Return the percentages in force, read from the balancer itself."""

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Put percentages in force, without cutting a request; they survive the balancer's restart."""


class Hosts(Protocol):
    """The machines or processes of the fleets. Every method raises HostsError."""

    def install(self, fleet: FleetName) -> None:
        """Make a fleet run what the rollout document says; return when its instances are ready."""

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet apart from its share of the traffic: health, version, writing and reading back."""

    def healthy(self, fleet: FleetName) -> bool:
        """Tell whether every instance that a fleet must have is ready."""


class Instances(Protocol):
    """The instances of the fleets one by one, in the balancer and on their machines: what a rolling update needs.

    They have the names that the rollout document and the metrics have for them, such as `blue-1`.
    """

    def names(self, fleet: FleetName) -> tuple[str, ...]:
        """Return the instances of a fleet as they are now, always in the same order; raises HostsError."""

    def draining(self) -> Mapping[FleetName, Collection[str]]:
        """Return those that get no new request, read from the balancer itself; raises BalancerError."""

    def set_draining(self, draining: Mapping[FleetName, Collection[str]]) -> None:
        """Send these no new request, and all others their share again, without cutting a request.

        Returns when that is in force, not when what is in flight has finished. Survives the balancer's restart. Raises
        BalancerError.
        """

    def drain(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Wait until instances that are out have finished what they have in flight; raises BalancerError.

        Returns all the same when the time that the stack's settings give to requests in flight is over.
        """

    def check(self) -> None:
        """Raise HostsError where the stack differs already from what the rollout document and the settings say.

        Asked before a rolling update begins: what differs then would come along with its instances, or hinder them.
        """

    def install(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Make instances run what the rollout document says of each; return when they are ready; raises HostsError.

        No other instance of a fleet that has traffic may be changed.
        """

    def verify(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Exercise each of these directly, out as they are: health, version, writing and reading back.

        Raises HostsError.
        """

    def ready(self, fleet: FleetName, instances: Collection[str]) -> bool:
        """Tell whether every one of these is ready; raises HostsError."""


class Trial(Protocol):
    """Tries versions before anything moves."""

    def test(self, fleet: FleetName, version: str) -> None:
        """Run a kept version as an instance of a fleet, but behind no balancer, and exercise it; then remove it.

        What a trial that was killed has left is removed too. Raises HostsError where the version fails.
        """


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the metrics know of a fleet, or of some of its instances, over the last moments.

    Attributes:
        requests: answered.
        error_ratio: errors among the requests, 0 to 1.
        p95_s: 95th percentile of the time to answer, in seconds; None where nothing was timed.
        saturation: used part of what an instance can hold at once, 0 to 1, of the fullest instance.
        restarts: of its instances.
        alerts: names of the firing alerts that roll this fleet back, whichever of its instances they are about.
        database_down: whether the database did not answer lately: then nothing else says anything about the fleet.
    """

    requests: float
    error_ratio: float
    p95_s: float | None
    saturation: float
    restarts: int
    alerts: tuple[str, ...] = ()
    database_down: bool = False


class Metrics(Protocol):
    """Where gates look."""

    def sample(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, since: float | None = None
    ) -> Sample:
        """Return what is known now of a fleet, or of these of its instances; alerts from before `since` are left out.

        What an instance did before it started with its present release does not count, nor is that start a restart.
        Raises MetricsUnavailableError where nothing is known.
        """

    def probe(self, fleet: FleetName, requests: int) -> None:
        """Send synthetic requests to a fleet that has too little traffic to be judged."""


class Silences(Protocol):
    """Who holds alerts back while a fleet moves. Never raises: what cannot be done is told in the journal."""

    def moving(self, deployment: str, fleet: FleetName) -> AbstractContextManager[None]:
        """Hold a fleet's alerts back during a block; a killed command's silence ends by itself soon."""

    def end(self, deployment: str) -> None:
        """End what a deployment holds back, also one whose command was killed."""


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def now(self) -> float:
        """Return seconds since the epoch."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class Journal(Protocol):
    """Who is told of every step: the audit, notifications, the terminal. Never raises."""

    def record(self, event: str, **details: Any) -> None:
        """Take down what happened, with its numbers."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that a delivery works with.

    `trial` is None where versions cannot be tried apart from the fleets, `instances` where those cannot be updated one
    by one.
    """

    store: RolloutStore
    balancer: Balancer
    hosts: Hosts
    metrics: Metrics
    silences: Silences
    clock: Clock
    journal: Journal
    trial: Trial | None = None
    instances: Instances | None = None
    limits: Limits = field(default_factory=Limits)
