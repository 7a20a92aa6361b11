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

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from observatory.delivery.documents import problems
from observatory.partial import partial_path

FleetName = Literal["blue", "green"]
Strategy = Literal["blue-green", "canary"]
Request = Literal["pause", "promote", "abort"]
Status = Literal["preparing", "shifting", "promoted", "rolling-back", "rolled-back"]
ENDED: tuple[Status, ...] = ("promoted", "rolled-back")
TOTAL_WEIGHT = 100  # weights are percent of the traffic, as in the ALB's weighted target groups


class RolloutError(Exception):
    """The rollout document cannot be read or may not be changed; nothing was written."""


class StaleRolloutError(RolloutError):
    """Somebody else changed the document, or holds a newer fencing number."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetState(_Document):
    """One fleet: its version (with the artifact's SHA-256) and its percentage of the traffic."""

    version: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weight: Annotated[int, Field(ge=0, le=TOTAL_WEIGHT)]


class Deployment(_Document):
    """One deployment: what it wants, how far it is, and what somebody at another terminal asks of it.

    Attributes:
        id: of the deployment, in the audit and in what it creates.
        version: that it brings, with the artifact's SHA-256.
        strategy: how the traffic moves.
        source: the fleet that served when it began, and serves again after a rollback.
        target: the fleet that gets the version.
        weights: percent of the traffic on the target, a number for each step; the last is 100.
        bake_s: seconds that each step is watched before the next.
        step: index of the step whose weight is set; -1 before the first.
        status: where it stands.
        request: what was asked and not yet answered.
        actor: who started it.
        approved_by: who had approved it, where somebody had.
        reason: why it was rolled back, in words.
        started: when it began, in seconds since the epoch.
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
    bake_s: Annotated[float, Field(ge=0)]
    step: Annotated[int, Field(ge=-1)] = -1
    status: Status = "preparing"
    request: Request | None = None
    actor: str
    approved_by: str | None = None
    reason: str | None = None
    started: float
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


def other(fleet: FleetName) -> FleetName:
    """Return the fleet that a fleet is not."""
    return "green" if fleet == "blue" else "blue"


def successor(
    standing: RolloutDocument | None, expected: RolloutDocument, changed: RolloutDocument, *, place: str
) -> RolloutDocument:
    """Return what a compare-and-set writes: `changed`, with the revision that follows the standing one.

    Raises:
        StaleRolloutError: what stands is not `expected` any more, or carries a newer fencing number.
    """
    if standing is None or standing.revision != expected.revision:
        found = "nothing" if standing is None else f"revision {standing.revision}"
        raise StaleRolloutError(f"{place}: expected revision {expected.revision}, found {found}; read it again")
    if changed.fencing < standing.fencing:
        raise StaleRolloutError(
            f"{place}: a newer deployment took over (fencing {changed.fencing} < {standing.fencing})"
        )
    return changed.model_copy(update={"revision": standing.revision + 1})


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
            standing = self.read()
            if standing is None:
                self._replace(document)
            return standing or document

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
