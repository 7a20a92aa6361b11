"""The rollout document: which version each fleet runs, with which weight, and which schema is wanted.

It is the one record of what is live, stands beside the stack's state and changes only by compare-and-set with a
fencing number, so that a stale checkout or a lost lock can never undo a rollout. Components declare from it. What it
does not own: how a balancer or a host is told (that is delivery's strategies) and first values (that is stack
settings).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from observatory.documents.validation import problems
from observatory.errors import ObservatoryError
from observatory.files.atomic import partial_path
from observatory.settings import FleetName

Strategy = Literal["blue-green", "canary", "rolling"]
Request = Literal["pause", "promote", "abort"]
Status = Literal["preparing", "shifting", "promoted", "rolling-back", "rolled-back"]
ENDED: tuple[Status, ...] = ("promoted", "rolled-back")
HEALTH_CHECK_S = 10.0  # the balancer looks each second
TOTAL_WEIGHT = 100  # weights are percent of the traffic, as in the ALB's weighted target groups


class RolloutError(ObservatoryError):
    """The rollout document cannot be read or may not be changed; nothing was written."""


class StaleRolloutError(RolloutError):
    """Somebody else changed the document, or holds a newer fencing number."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Release(_Document):
    """A version of the service, with its artifact's SHA-256."""

    version: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Rolling(Release):
    """A rolling update in the middle: some instances of a fleet run this release, the others the fleet's own.

    Instances have the names that the balancer and the metrics have for them, such as `blue-1`.

    Attributes:
        instances: run this release, or are about to: one is named here only after it was drained.
        draining: get no new request from the balancer while they are updated. Documents of version 0.1 name it `out`.
    """

    instances: tuple[str, ...] = ()
    draining: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("draining", "out"))


class FleetState(Release):
    """One fleet: the release of its instances, and its percentage of the traffic.

    `rolling` says which instances run another release; it is None but in the middle of a rolling update, whose end
    makes its release the fleet's own. So a machine that joins meanwhile starts with the old one.
    """

    weight: Annotated[int, Field(ge=0, le=TOTAL_WEIGHT)]
    rolling: Rolling | None = None

    def release(self, instance: str) -> Release:
        """Return what an instance runs."""
        return self.rolling if self.rolling and instance in self.rolling.instances else self

    @property
    def versions(self) -> str:
        """Its version, for people; in the middle of a rolling update with the instances that run another."""
        if self.rolling is None:
            return self.version
        moved = f"{self.rolling.version} on {', '.join(self.rolling.instances) or 'none yet'}"
        return f"{self.version}, {moved}" + (
            f" (draining: {', '.join(self.rolling.draining)})" if self.rolling.draining else ""
        )


class Deployment(_Document):
    """One deployment: what it wants, how far it is, and what somebody at another terminal asks of it.

    Attributes:
        id: of the deployment, in the audit and in what it creates.
        version: that it brings, with the artifact's SHA-256.
        strategy: how the version comes.
        source: the fleet that served when it began, and serves again after a rollback; of a rolling update its target.
        target: the fleet that gets the version.
        weights: percent of the traffic on the target, a number for each step, to 100. A rolling update has none.
        batch_size: instances that a rolling update takes at a time; None for the other strategies.
        gated: whether each step is watched and judged by metrics; a way back to a version is not.
        bake_s: seconds that each step is watched before the next.
        health_check_s: seconds that the target gets to be ready before it takes more traffic.
        step: index of the step whose weight is set, or of a rolling update's batch; -1 before the first.
        status: where it stands.
        request: what was asked and not yet answered.
        actor: who started it.
        approved_by: who had approved it, where somebody had.
        reason: why it was rolled back, in words.
        started: when it began, in seconds since the epoch.
        exercised: when the version was last found well where it is to serve, in seconds since the epoch; what fired
            before is not its fault.
        before: what the target ran before, and runs again after a rollback.
        tests: whether the version was tried before anything moved; None where that is not known.
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
    actor: str
    approved_by: str | None = None
    reason: str | None = None
    started: float
    exercised: float | None = None
    before: FleetState
    tests: Literal["passed", "skipped"] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ENDED


class RolloutDocument(_Document):
    """What is live on one stack.

    `revision` grows by one with every write and is what compare-and-set compares; `fencing` is the number of the
    newest deployment that was let in, and a writer with an older one is refused. `schema_target` is the migration
    version wanted, or None for the newest. `deployment` is the one under way, or the last.
    """

    revision: Annotated[int, Field(ge=0)] = 0
    fencing: Annotated[int, Field(ge=0)] = 0
    blue: FleetState
    green: FleetState
    schema_target: Annotated[int, Field(ge=0)] | None = None
    deployment: Deployment | None = None

    @property
    def unfinished(self) -> Deployment | None:
        """The deployment that is under way, or was when its command died."""
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
        """The percentage of each fleet."""
        return {"blue": self.blue.weight, "green": self.green.weight}

    @property
    def draining(self) -> dict[FleetName, tuple[str, ...]]:
        """The instances of each fleet that get no new request."""
        return {"blue": _draining(self.blue), "green": _draining(self.green)}

    def with_fleet(self, name: FleetName, **changes: Any) -> Self:
        """Return the document with one fleet changed."""
        return self.model_copy(update={name: self.fleet(name).model_copy(update=changes)})

    def with_weight(self, name: FleetName, weight: int) -> Self:
        """Return the document with `weight` percent on one fleet and the rest on the other."""
        return self.with_fleet(name, weight=weight).with_fleet(other(name), weight=TOTAL_WEIGHT - weight)

    @classmethod
    def first(cls, *, version: str, sha256: str, active_fleet: FleetName) -> Self:
        """Return the document of a stack that starts: both fleets on one version, all traffic on the active one."""
        idle = FleetState(version=version, sha256=sha256, weight=0)
        active = idle.model_copy(update={"weight": TOTAL_WEIGHT})
        return cls(blue=active, green=idle) if active_fleet == "blue" else cls(blue=idle, green=active)


def _draining(state: FleetState) -> tuple[str, ...]:
    return state.rolling.draining if state.rolling else ()


def other(fleet: FleetName) -> FleetName:
    """Return the fleet that a fleet is not."""
    return "green" if fleet == "blue" else "blue"


def successor(
    current: RolloutDocument | None, expected: RolloutDocument, changed: RolloutDocument, *, place: str
) -> RolloutDocument:
    """Return what a compare-and-set writes: `changed`, with the revision that follows the current one.

    Raises:
        StaleRolloutError: what stands is not `expected` any more, or carries a newer fencing number.
    """
    if current is None or current.revision != expected.revision:
        found = "nothing" if current is None else f"revision {current.revision}"
        raise StaleRolloutError(f"{place}: expected revision {expected.revision}, found {found}; read it again")
    if changed.fencing < current.fencing:
        raise StaleRolloutError(
            f"{place}: a newer deployment took over (fencing {changed.fencing} < {current.fencing})"
        )
    return changed.model_copy(update={"revision": current.revision + 1})


class FileRolloutStore:
    """The rollout document of one stack as a file, changed under a file lock by atomic replacement."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> RolloutDocument | None:
        """Return the document, or None where none was written yet.

        Raises:
            RolloutError: the file is damaged.
        """
        try:
            return RolloutDocument.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RolloutError(f"{self.path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise RolloutError(
                f"{self.path}: not a rollout document ({problems(error)}); restore it from a copy, or remove it and "
                "`up` starts from the stack's first_rollout"
            ) from error

    def create(self, document: RolloutDocument) -> RolloutDocument:
        """Write the first document, unless there is one; return the one that stands."""
        with self._locked():
            current = self.read()
            if current is None:
                self._replace(document)
            return current or document

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        """Replace `expected` by `changed` and return what was written, its revision raised by one.

        Raises:
            StaleRolloutError: the document is not `expected` any more, or carries a newer fencing number.
        """
        with self._locked():
            written = successor(self.read(), expected, changed, place=str(self.path))
            self._replace(written)
            return written

    def remove(self) -> None:
        """Remove the document with its lock, when the stack goes."""
        for suffix in (self.path.suffix, ".lock", ".balancer.lock"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep every other process from telling the balancer; the lock ends with its holder."""
        return self._locked(".balancer.lock")

    @contextmanager
    def _locked(self, suffix: str = ".lock") -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(suffix).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _replace(self, document: RolloutDocument) -> None:
        partial = partial_path(self.path)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(document.model_dump_json(indent=2))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
