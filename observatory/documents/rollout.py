"""The rollout document: which version each fleet runs, with which traffic weight, and which schema is the target.

It is the only record of what is live. It is kept beside the stack's state, components declare from it, and it changes
only by compare-and-set with a fencing number, so that neither a stale checkout nor a lost lock can undo a rollout. Does
not own how the balancer and the fleets follow it (`observatory.delivery`), nor its first values (settings).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from observatory.documents.copied_file import CopiedFile
from observatory.documents.document_file import DocumentFile
from observatory.errors import ObservatoryError
from observatory.files.locks import exclusive
from observatory.settings import FleetName

Strategy = Literal["blue-green", "canary", "rolling"]
Request = Literal["pause", "promote", "abort"]
Status = Literal["preparing", "shifting", "paused", "promoted", "rolling-back", "rolled-back"]
ENDED: tuple[Status, ...] = ("promoted", "rolled-back")
HEALTH_CHECK_S = 10.0  # the balancer checks every second
TOTAL_WEIGHT = 100  # weights are percent of the traffic, as in the ALB's weighted target groups


class RolloutError(ObservatoryError):
    """The rollout document cannot be read or changed; nothing was written."""


class StaleRolloutError(RolloutError):
    """The document changed concurrently, or has a newer fencing number."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Release(_Document):
    """A version of the service, with its artifact's SHA-256."""

    version: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Rolling(Release):
    """A rolling update under way: some instances of a fleet run this release, the others the fleet's own.

    Instances are named as in the balancer and in metrics, for example `blue-1`.

    Attributes:
        instances: run this release, or are about to; an instance is added only after it has drained.
        draining: get no new requests from the balancer. Documents of version 0.1 name this `out`.
    """

    instances: tuple[str, ...] = ()
    draining: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("draining", "out"))


class FleetState(Release):
    """One fleet: the release of its instances, and its traffic weight in percent.

    `rolling` has the instances that run another release during a rolling update, and is None otherwise. The update's
    end makes its release the fleet's own, so a machine that joins meanwhile starts with the old one. `stopped` has the
    instances of a fleet that a rollback has stopped: they do not run until the next deployment, and the balancer has
    them in maintenance.
    """

    weight: Annotated[int, Field(ge=0, le=TOTAL_WEIGHT)]
    rolling: Rolling | None = None
    stopped: tuple[str, ...] = ()

    def release(self, instance: str) -> Release:
        """Return the release that an instance runs."""
        return self.rolling if self.rolling and instance in self.rolling.instances else self

    @property
    def versions(self) -> str:
        """The version for display; during a rolling update also the new version, with its instances."""
        if self.rolling is None:
            return f"{self.version} (stopped)" if self.stopped else self.version
        moved = f"{self.rolling.version} on {', '.join(self.rolling.instances) or 'no instance yet'}"
        return f"{self.version}, {moved}" + (
            f" (draining: {', '.join(self.rolling.draining)})" if self.rolling.draining else ""
        )


class Deployment(_Document):
    """One deployment: its request, its progress, and a control request to it.

    Attributes:
        id: of the deployment, in the journal, the audit and the silences.
        version: to deploy.
        sha256: of the version's artifact.
        strategy: of the deployment.
        source: the fleet that had the traffic before and has it after a rollback; the target in a rolling update.
        target: the fleet that gets the version.
        weights: traffic weight of the target in percent, one for each step, to 100; none in a rolling update.
        batch_size: instances that a rolling update replaces at a time; None for the other strategies.
        gated: whether gates evaluate each step; a rollback to a version has no gates.
        bake_s: seconds that each step is evaluated for.
        health_check_s: seconds that the target may take to become ready before it gets more traffic.
        step: index of the current step in `weights`; -1 before the first and in a rolling update.
        status: its state.
        request: a control request that the deployment has not handled yet.
        asked: how many control requests were sent to it.
        heard: how many of them its command had been sent when it last read the document to follow them.
        actor: who started it.
        approved_by: who approved it, None if it needed no approval.
        reason: why it was rolled back, or is paused.
        started: when it started, in seconds since the epoch.
        promoted: when it was promoted, in seconds since the epoch; None before, and in documents of earlier versions.
        exercised: when the version was last verified on the target, in seconds since the epoch; gates ignore alerts
            that fired before.
        before: the target's previous state, which a rollback restores.
        emergency: whether it ends an outage: differences of the active fleet do not stop it.
        tests: result of the pre-deployment tests; None in documents of earlier versions.
    """

    id: str
    version: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    strategy: Strategy
    source: FleetName
    target: FleetName
    weights: tuple[Annotated[int, Field(ge=1, le=TOTAL_WEIGHT)], ...]
    batch_size: Annotated[int, Field(ge=1)] | None = None
    gated: bool = True
    bake_s: Annotated[float, Field(ge=0)]
    health_check_s: Annotated[float, Field(ge=0)] = HEALTH_CHECK_S
    step: Annotated[int, Field(ge=-1)] = -1
    status: Status = "preparing"
    request: Request | None = None
    asked: Annotated[int, Field(ge=0)] = 0
    heard: Annotated[int, Field(ge=0)] = 0
    actor: str
    approved_by: str | None = None
    reason: str | None = None
    started: float
    exercised: float | None = None
    promoted: float | None = None
    before: FleetState
    emergency: bool = False
    tests: Literal["passed", "skipped"] | None = None

    @property
    def ended(self) -> bool:
        """Whether it was promoted or rolled back."""
        return self.status in ENDED


class RolloutDocument(_Document):
    """What is live on one stack.

    Attributes:
        revision: number of writes, which compare-and-set compares.
        fencing: fencing number of the newest deployment or rollback; a writer with an older one is refused.
        blue: the blue fleet.
        green: the green fleet.
        schema_target: number of the migration to deploy up to, None for the newest.
        deployment: the one under way, or the last.
    """

    revision: Annotated[int, Field(ge=0)] = 0
    fencing: Annotated[int, Field(ge=0)] = 0
    blue: FleetState
    green: FleetState
    schema_target: Annotated[int, Field(ge=0)] | None = None
    deployment: Deployment | None = None

    @property
    def unfinished(self) -> Deployment | None:
        """The deployment that is under way or was interrupted, None if the last one has ended."""
        return self.deployment if self.deployment and not self.deployment.ended else None

    @model_validator(mode="after")
    def _weights_are_whole(self) -> Self:
        if self.blue.weight + self.green.weight != TOTAL_WEIGHT:
            raise ValueError(f"weights {self.blue.weight} + {self.green.weight} must be {TOTAL_WEIGHT}")
        return self

    @property
    def active_fleet(self) -> FleetName:
        """The fleet with the larger weight; blue when both have the same."""
        return "green" if self.green.weight > self.blue.weight else "blue"

    def fleet(self, name: FleetName) -> FleetState:
        """Return the state of one fleet."""
        return self.green if name == "green" else self.blue

    @property
    def weights(self) -> dict[FleetName, int]:
        """The traffic weight of each fleet, in percent."""
        return {"blue": self.blue.weight, "green": self.green.weight}

    @property
    def draining(self) -> dict[FleetName, tuple[str, ...]]:
        """The instances of each fleet that get no new requests: draining or stopped ones."""
        return {"blue": _draining(self.blue), "green": _draining(self.green)}

    def with_fleet(self, name: FleetName, **changes: Any) -> Self:
        """Return the document with one fleet changed."""
        return self.model_copy(update={name: self.fleet(name).model_copy(update=changes)})

    def with_weight(self, name: FleetName, weight: int) -> Self:
        """Return the document with `weight` percent of the traffic on one fleet and the rest on the other."""
        return self.with_fleet(name, weight=weight).with_fleet(other(name), weight=TOTAL_WEIGHT - weight)

    @classmethod
    def first(cls, *, version: str, sha256: str, active_fleet: FleetName) -> Self:
        """Return the first document of a stack: both fleets on one version, all traffic on the active one."""
        idle = FleetState(version=version, sha256=sha256, weight=0)
        active = idle.model_copy(update={"weight": TOTAL_WEIGHT})
        return cls(blue=active, green=idle) if active_fleet == "blue" else cls(blue=idle, green=active)


def _draining(state: FleetState) -> tuple[str, ...]:
    return (*(state.rolling.draining if state.rolling else ()), *state.stopped)


def other(fleet: FleetName) -> FleetName:
    """Return the other fleet."""
    return "green" if fleet == "blue" else "blue"


def successor(
    current: RolloutDocument | None, expected: RolloutDocument, changed: RolloutDocument, *, place: str
) -> RolloutDocument:
    """Return what a compare-and-set writes: `changed`, with the revision after that of the current document.

    Args:
        current: the document as it is in the store, None where there is none.
        expected: what `changed` was made from.
        changed: to write.
        place: of the document, for messages.

    Raises:
        StaleRolloutError: the current document is not `expected`, or has a newer fencing number.
    """
    if current is None or current.revision != expected.revision:
        found = "no document" if current is None else f"revision {current.revision}"
        raise StaleRolloutError(f"{place}: found {found}, expected revision {expected.revision}; read it again")
    if changed.fencing < current.fencing:
        raise StaleRolloutError(
            f"{place}: found fencing number {current.fencing}, expected at most {changed.fencing}: a newer deployment "
            "took over"
        )
    return changed.model_copy(update={"revision": current.revision + 1})


class FileRolloutStore:
    """The rollout document of one stack as a file, with copies of its last versions beside it.

    Attributes:
        path: of the file.
        problem: what the last read found wrong with the file and no read before; empty where there is nothing new.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problem, self._reported = path, "", ""
        file = DocumentFile(
            path=path,
            model=RolloutDocument,
            kind="a rollout document",
            error=RolloutError,
            remedy=f"restore it, or remove it with its copies ({path.name}.1 and so on), and `observatory up` starts "
            "from the setting first_rollout",
        )
        self._file = CopiedFile(file=file, version="revision")

    def read(self) -> RolloutDocument | None:
        """Return the document, from its newest copy where the file is not usable; None where there is none yet.

        Raises:
            RolloutError: the file is damaged, and so is every copy; or a newer version of observatory wrote it.
        """
        document, problem = self._file.find()
        self.problem, self._reported = ("" if problem == self._reported else problem), problem
        return document

    def create(self, document: RolloutDocument) -> RolloutDocument:
        """Write a first document unless there is one; return the current one.

        Raises:
            RolloutError: the file is damaged.
        """
        return self._file.change(lambda current: current or document)

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        """Replace `expected` by `changed` and return what was written, with the next revision.

        Raises:
            StaleRolloutError: the document is not `expected` any more, or has a newer fencing number.
            RolloutError: the file is damaged.
        """
        return self._file.change(lambda current: successor(current, expected, changed, place=str(self.path)))

    def remove(self) -> None:
        """Remove the document with its locks, when the stack is destroyed."""
        self._file.remove()
        self._balancer_lock.unlink(missing_ok=True)

    def exclusive(self) -> AbstractContextManager[object]:
        """Keep other processes from writing to the balancer; the lock ends with the process that holds it."""
        return exclusive(self._balancer_lock)

    @property
    def _balancer_lock(self) -> Path:
        return self.path.with_suffix(".balancer.lock")
