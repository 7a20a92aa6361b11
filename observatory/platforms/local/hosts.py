"""The fleets of the local stack: a version is installed by running the program."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from observatory.delivery.environment import HostsError, LostDatabaseError, UnjudgedError
from observatory.documents.rollout import FileRolloutStore, FleetState
from observatory.engines.embedded import EngineError, Interrupted, LockedError, Result, Step
from observatory.nodes.storage import labelled, unit_name
from observatory.platforms.preview import Preview
from observatory.platforms.stack_state import SCHEMA_TYPE
from observatory.runtime import Probe, RuntimeFault, Sandbox
from observatory.runtime.programs import ENDED
from observatory.runtime.removal import remove_programs, signal_programs
from observatory.settings import FLEETS, FleetName

UNCHANGED = ("same", "refresh", "read")
LOCKED_SECONDS = 120.0  # until another run of the program ends, e.g. that of a deployment that was taken over
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class LocalHosts:
    """The fleets as the program declares them: installing a version is an `up` that may change one fleet only.

    Attributes:
        rollout: the store of the document that the program declares from.
        ports: of each fleet's instances.
        sandbox: of the instances.
        preview: exercises a fleet.
        plan: plans an `up`.
        up: runs it.
        administrator: returns the connection string of the database.
    """

    rollout: FileRolloutStore
    ports: Mapping[FleetName, Sequence[int]]
    sandbox: Sandbox
    preview: Preview
    plan: Callable[[], Result]
    up: Callable[[], object]
    administrator: Callable[[], str]

    def check(self, fleet: FleetName, *, migrated: bool = False) -> None:
        """Check that an `up` would change only a fleet; `migrated`: once the pending migrations are applied.

        Raises:
            HostsError: it would change more, or it cannot be planned.
        """
        _check_only(fleet, lambda step: is_of(fleet, step) or (migrated and step.type == SCHEMA_TYPE), self._plan())

    def install(self, fleet: FleetName, *, repair: bool = False) -> None:
        """Install the rollout document's version on a fleet; return when the balancer reports a ready instance.

        Raises:
            HostsError: an `up` would change more than this fleet, or with `repair` more than the fleets; or it failed.
            UnjudgedError: it failed while the database did not accept writes; LostDatabaseError where it did at first:
                then the fleet, which may be the cause, is stopped, unless users wait for its repair.
        """
        changed = FLEETS if repair else (fleet,)
        try:
            with self.judged():
                self.up_only(" and ".join(changed), lambda step: any(is_of(each, step) for each in changed))
                self.preview.wait_ready(fleet)
        except LostDatabaseError:
            if not repair:
                self.stop(fleet, patient=lambda: False)
            raise

    @contextlib.contextmanager
    def judged(self, failures: type[HostsError] = HostsError) -> Iterator[None]:
        """Blame no version for what fails in the block while the database does not accept writes.

        Args:
            failures: that the state of the database may explain.

        Raises:
            UnjudgedError: in place of these, where the database was away, restarted or a standby meanwhile.
            LostDatabaseError: in place of these, where it accepted writes at first.
        """
        from observatory.database.ping import watched  # noqa: PLC0415 - psycopg only where it is used

        with watched(self.administrator()) as server:
            try:
                yield
            except failures as error:
                if server.accepted_writes():
                    raise
                kind = LostDatabaseError if server.accepted_at_first else UnjudgedError
                raise kind(
                    f"no version can be judged now: the database was restarted or does not accept writes; {error}"
                ) from error

    def up_only(self, what: str, owned: Callable[[Step], bool]) -> None:
        """Run the program if it changes only resources that are `owned`; wait for another run of it to end.

        Raises:
            HostsError: it would change more, or it failed.
        """
        from tenacity import (  # noqa: PLC0415 - a rollback of traffic runs no program
            Retrying,
            retry_if_exception_type,
            stop_after_delay,
            wait_fixed,
        )

        waiting = Retrying(
            retry=retry_if_exception_type(LockedError),
            stop=stop_after_delay(LOCKED_SECONDS),
            wait=wait_fixed(POLL_SECONDS),
            reraise=True,
        )
        try:
            waiting(self._up_once, what, owned)
        except Interrupted as error:
            raise KeyboardInterrupt from error
        except (EngineError, RuntimeFault) as error:
            raise HostsError(f"{what}: the version cannot be installed: {error}") from error

    def _up_once(self, what: str, owned: Callable[[Step], bool]) -> None:
        _check_only(what, owned, self.plan().steps)
        self.up()

    def changes(self) -> str:
        """Return the changes that an `up` would make, as text; empty where there is none.

        Raises:
            HostsError: the plan failed.
        """
        return _listed(self._plan())

    def _plan(self) -> Sequence[Step]:
        try:
            return self.plan().steps
        except Interrupted as error:
            raise KeyboardInterrupt from error
        except (EngineError, RuntimeFault) as error:
            raise HostsError(f"the changes that `observatory up` would make cannot be planned: {error}") from error

    def state(self, fleet: FleetName) -> FleetState:
        """Return a fleet's state in the rollout document.

        Raises:
            HostsError: there is no rollout document.
        """
        document = self.rollout.read()
        if document is None:
            raise HostsError("the rollout document is missing; `observatory up` writes it again")
        return document.fleet(fleet)

    def healthy(self, fleet: FleetName) -> bool:
        """Return whether every instance of a fleet is ready."""
        return all(Probe(http=f"http://127.0.0.1:{port}/health/ready").check() for port in self.ports[fleet])

    def silent(self, fleet: FleetName) -> str:
        """Return why no instance of a fleet responds; empty where one does, ready or not."""
        reasons = []
        for _, probe in self._probes(fleet):
            if not (reason := probe.silence()):
                return ""
            reasons.append(reason)
        return "; ".join(reasons)

    def restart(self, fleet: FleetName) -> None:
        """Kill the instances of a fleet that do not respond; the supervisor starts them again.

        Raises:
            HostsError: the supervisor does not answer.
        """
        supervisor = self.sandbox.supervisor
        silent = [name for name, probe in self._probes(fleet) if probe.silence()]
        with _supervisor_errors(fleet):
            signal_programs(supervisor, silent, signal.SIGKILL)
            for name in silent:
                if supervisor.status(name).state in ENDED - {"ABSENT"}:
                    supervisor.start(name)

    def stop(self, fleet: FleetName, *, patient: Callable[[], bool]) -> tuple[str, ...]:
        """Remove the instances of a fleet from the supervisor, and return their names.

        Raises:
            HostsError: the supervisor does not answer.
        """
        labels = tuple(labelled(fleet, self.ports[fleet]))
        with _supervisor_errors(fleet):
            remove_programs(self.sandbox.supervisor, {unit_name(label) for label in labels}, patient=patient)
        return labels

    def _probes(self, fleet: FleetName) -> Iterator[tuple[str, Probe]]:
        """Yield the program of each instance with the probe of its liveness."""
        for label, port in labelled(fleet, self.ports[fleet]).items():
            yield unit_name(label), Probe(http=f"http://127.0.0.1:{port}/health/live")

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet through the preview listener; the rows that this writes are removed.

        Raises:
            HostsError: another version answers, a write was refused, or a trace cannot be read.
            UnjudgedError: the other fleet fails, too; LostDatabaseError where the database was lost meanwhile.
        """
        with self.judged(UnjudgedError):
            self.preview.verify(fleet, self.state(fleet).version)


@contextlib.contextmanager
def _supervisor_errors(fleet: FleetName) -> Iterator[None]:
    try:
        yield
    except RuntimeFault as error:
        raise HostsError(f"{fleet}: {error}") from error


def is_of(fleet: FleetName, step: Step) -> bool:
    """Return whether a step is on a resource of a fleet."""
    owner = f"observatory:local:Fleet::{fleet}"
    return step.urn.endswith(owner) or step.parent.endswith(owner)


def _check_only(what: str, owned: Callable[[Step], bool], steps: Sequence[Step]) -> None:
    """Refuse a plan with other changes: a rollback must undo exactly what the deployment did."""
    if foreign := _listed([step for step in steps if not owned(step)]):
        raise HostsError(
            f"`observatory up` would change more than {what} ({foreign}): run `observatory up` first, then deploy again"
        )


def _listed(steps: Sequence[Step]) -> str:
    return ", ".join(f"{step.operation} {step.name}" for step in steps if step.operation not in UNCHANGED)
