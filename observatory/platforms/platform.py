"""The interface between operations and a platform.

Owns what a platform must offer. `observatory.platforms.local` and `observatory.platforms.aws` implement it;
`observatory.platforms.platform_of` chooses between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from observatory.delivery.environment import Approvals, Balancer, Hosts, Instances, Releases, RolloutStore, Trial
from observatory.documents.rollout import RolloutDocument
from observatory.platforms.errors import UnsupportedOperationError
from observatory.progress import Reporter
from observatory.settings import FleetName, StackSettings
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Backup
    from observatory.notifications import Channel
    from observatory.platforms.preview import Preview
    from observatory.platforms.request_counts import Traffic

OFF = "off"  # the health of a daemon that a rollback has stopped and that does not run
NAMED_PARTS = 3  # of the parts that a message counts
EngineName = Literal["cli", "embedded"]
EngineChoice = Literal["auto", "cli", "embedded"]
Operation = Literal[
    "status",
    "verify",
    "release deploy",
    "rotate-passwords",
    "down --keep-data",
    "backup",
    "rollback --method database",
    "logs",
    "psql",
    "exec",
    "log rotation",
    "certificates",
    "scheduler",
    "console",
]


@dataclass(frozen=True, kw_only=True)
class LoadedParts:
    """Parts that a daemon must have loaded, such as the rules of Prometheus: `declared` ones and `loaded` ones."""

    daemon: str
    kind: str
    declared: tuple[str, ...]
    loaded: tuple[str, ...]

    @classmethod
    def of(cls, daemon: str, kind: str, declared: Iterable[str], loaded: Iterable[str]) -> Self:
        """Return the parts in order."""
        return cls(daemon=daemon, kind=kind, declared=tuple(sorted(declared)), loaded=tuple(sorted(loaded)))

    def __str__(self) -> str:
        """Return how many are loaded, and the first ones that are missing or not declared."""
        count = f"{self.daemon} has {len(self.loaded)} of {len(self.declared)} {self.kind}"
        different = [
            f"{len(names)} {what} ({', '.join(names[:NAMED_PARTS])}{', ...' if len(names) > NAMED_PARTS else ''})"
            for what, names in (("missing", self._missing), ("not declared", self._foreign))
            if names
        ]
        return f"{count}: {', '.join(different)}" if different else count

    @property
    def _missing(self) -> list[str]:
        return sorted((Counter(self.declared) - Counter(self.loaded)).elements())

    @property
    def _foreign(self) -> list[str]:
        return sorted((Counter(self.loaded) - Counter(self.declared)).elements())


@dataclass(frozen=True, kw_only=True)
class DaemonStatus:
    """One daemon.

    Attributes:
        name: of the daemon.
        address: where it listens, or `-`.
        version: of its software; of an instance of the service, the version that the rollout document has.
        pid: of its process; None where it does not run.
        health: `ready`, `not ready`, `off` for one that a rollback has stopped, or the supervisor's state of a daemon
            that does not run.
        memory_mb: its proportional set size with its children, in MiB; None where it cannot be read.
        running_version: the version that an instance of the service reports; None for others, and without an answer.
    """

    name: str
    address: str
    version: str
    pid: int | None
    health: str
    memory_mb: int | None
    running_version: str | None = None

    @property
    def as_declared(self) -> bool:
        """Whether it is ready, or stopped where it should be."""
        return self.health in {"ready", OFF}

    @property
    def as_deployed(self) -> bool:
        """Whether it runs no other version than the rollout document has."""
        return self.health == OFF or self.running_version in {None, self.version}

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a plain mapping."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FleetParts:
    """The parts of a delivery's environment that differ from platform to platform.

    `trial` and `instances` are None where the platform has no trial and no rolling update, `instance_url` where no
    instance has its own URL.
    """

    balancer: Balancer
    hosts: Hosts
    trial: Trial | None = None
    instances: Instances | None = None
    instance_url: Callable[[FleetName, str], str] | None = None


class Platform(Protocol):
    """One stack on its platform.

    Attributes:
        needs_plugins: whether the stack's resources need provider plugins, which only the Pulumi CLI runs.
        schema_is_secret: whether the connection string of the schema's owner is a secret in the state.
        traffic: the metrics that count a fleet's requests.
    """

    needs_plugins: ClassVar[bool]
    schema_is_secret: ClassVar[bool]
    traffic: ClassVar[Traffic]

    @property
    def workspace(self) -> Workspace:
        """The stack's workspace."""

    @property
    def settings(self) -> StackSettings:
        """The stack's settings."""

    @property
    def rollout_store(self) -> RolloutStore:
        """The store of the rollout document."""

    @property
    def release_store(self) -> Releases:
        """The store of the versions that may be deployed."""

    @property
    def approval_store(self) -> Approvals:
        """The store of the approvals of releases for this stack."""

    def unsupported(self, operation: Operation) -> str | None:
        """Return why the platform does not offer an operation and what to do instead; None where it does."""

    def trusted_keys(self) -> dict[str, str]:
        """Return the public keys, by name, that may sign the stack's releases."""

    def channels(self) -> Iterator[Channel]:
        """Yield the channels that deliveries notify."""

    def administrator(self, outputs: Mapping[str, Any]) -> str:
        """Return the connection string of the database's superuser.

        Raises:
            DeliveryRefusedError: the secret with the connection string cannot be read.
        """

    def fleet_parts(self, outputs: Mapping[str, Any], preview: Preview, choice: EngineChoice) -> FleetParts:
        """Return the balancer, hosts, trial and instances of the fleets.

        Args:
            outputs: of the stack.
            preview: exercises a fleet.
            choice: of the engine that installs a version.

        Raises:
            DeliveryRefusedError: the outputs do not name the fleets' parts.
        """

    def prepare(self, report: Reporter) -> None:
        """Create or check what the stack needs before its program can run.

        Raises:
            ReleaseError: a release that the fleets run is not in the store, or has another digest.
            RuntimeFault: this machine cannot run the stack.
            ReleaseBuildError: the service's artifact cannot be built.
        """

    def before_up(self, report: Reporter) -> None:
        """Check what an `up` needs, and replace passwords that the server refuses.

        Raises:
            PortInUse: another program holds a port of the stack.
        """

    def current_rollout(self) -> RolloutDocument | None:
        """Return what is live: the rollout document, or what the last `up` declared where there is none."""

    def daemons(self, rollout: RolloutDocument) -> list[DaemonStatus]:
        """Return the status of every daemon that the stack should run.

        Raises:
            UnsupportedOperationError: see `unsupported("status")`.
        """

    def loaded_parts(self, rollout: RolloutDocument, query: Callable[[str, str], Any]) -> tuple[LoadedParts, ...]:
        """Return what the daemons of monitoring and balancing should have loaded, and what they have.

        Args:
            rollout: what is live.
            query: returns the JSON of a GET request, by the name of the output with the server's URL, and the path.

        Raises:
            UnsupportedOperationError: see `unsupported("verify")`.
        """

    def used_logins(self, outputs: Mapping[str, Any]) -> set[str]:
        """Return the database logins that clients use now.

        Raises:
            UnsupportedOperationError: see `unsupported("rotate-passwords")`.
        """

    def migration_backup(self) -> Backup:
        """Return the backup that is made before migrations run."""

    def archive_journal(self) -> None:
        """Copy the journal of deliveries beside the backups, where the platform keeps such a copy.

        Raises:
            OSError: the copy cannot be written.
        """

    def stop(self, lock: Callable[[], AbstractContextManager[None]], *, keep_data: bool, report: Reporter) -> None:
        """Stop what runs on this machine while `lock` is held; without `keep_data` remove the data, too."""

    def remove(self, destroy: Callable[[], None], report: Reporter) -> None:
        """Remove the stack's resources by `destroy`, and then what `down` removes besides resources."""


def check_supported(platform: Platform, operation: Operation) -> None:
    """Refuse an operation that the stack's platform does not offer.

    Raises:
        UnsupportedOperationError: the platform does not offer it; nothing was changed.
    """
    if reason := platform.unsupported(operation):
        raise UnsupportedOperationError(reason)
