"""The local stack, as deliveries see it: HAProxy's map, the program's fleets, instances on loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from observatory.delivery.environment import BalancerError, HostsError
from observatory.documents.rollout import FileRolloutStore, FleetState
from observatory.engines.embedded import EngineError, Interrupted, LockedError, Result, Step
from observatory.nodes import Paths
from observatory.nodes.haproxy import runtime_socket, weights_file
from observatory.platforms.preview import Preview
from observatory.runtime import BalancerUnreachable, LiveMap, Probe, RuntimeFault, Sandbox
from observatory.settings import FleetName

UNTOUCHED = ("same", "refresh", "read")
LOCKED_SECONDS = 120.0  # for another run of the program to end, such as that of a deployment that was taken over
POLL_SECONDS = 0.1
RESTART_SECONDS = 2.0  # for a balancer that died to be started again by its supervisor


@dataclass(frozen=True)
class HaproxyBalancer:
    """The traffic's division by HAProxy's map; only green's percentage is drawn against, so a change is one step."""

    sandbox: Sandbox

    def weights(self) -> Mapping[FleetName, int]:
        """Return the percentages in force.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with told():
            live = self._map.read()
        return {"blue": int(live["blue"]), "green": int(live["green"])}

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Put percentages in force, and keep them for HAProxy's next start.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with told():
            self._map.write({fleet: str(weight) for fleet, weight in weights.items()})

    @property
    def _map(self) -> LiveMap:
        file, socket = weights_file(Paths()), runtime_socket(Paths())
        return LiveMap(sandbox=self.sandbox, file=file, socket=socket, patience=RESTART_SECONDS)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say of a conversation with HAProxy that failed what a delivery calls it."""
    try:
        yield
    except (BalancerUnreachable, OSError) as error:
        raise BalancerError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class LocalHosts:
    """The fleets, made by the program itself: installing a version is an `up` that may change one fleet only.

    Attributes:
        rollout: the document that the program declares from.
        ports: of each fleet's instances.
        preview: exercises a fleet.
        plan: says what an `up` would do.
        up: does it.
    """

    rollout: FileRolloutStore
    ports: Mapping[FleetName, Sequence[int]]
    preview: Preview
    plan: Callable[[], Result]
    up: Callable[[], object]

    def install(self, fleet: FleetName) -> None:
        """Make a fleet run what the document says; return when the balancer sees every instance ready.

        Raises:
            HostsError: an `up` would change more than this fleet, or it failed.
        """
        self.up_only(fleet, lambda step: is_of(fleet, step))
        self.preview.wait_seen(fleet)

    def up_only(self, what: str, owned: Callable[[Step], bool]) -> None:
        """Let the program run, when it would change nothing but what is owned; wait for another run of it to end.

        Raises:
            HostsError: it would change more, or it failed.
        """
        deadline = time.monotonic() + LOCKED_SECONDS
        while True:
            try:
                _only(what, owned, self.plan().steps)
                self.up()
            except Interrupted as error:
                raise KeyboardInterrupt from error
            except (EngineError, RuntimeFault) as error:
                if not isinstance(error, LockedError) or time.monotonic() > deadline:
                    raise HostsError(f"{what} cannot be brought to the version: {error}") from error
                time.sleep(POLL_SECONDS)
            else:
                return

    def changes(self) -> str:
        """Return in words what an `up` would change; nothing where all is as declared.

        Raises:
            HostsError: that cannot be told.
        """
        try:
            return _listed(self.plan().steps)
        except (EngineError, RuntimeFault) as error:
            raise HostsError(f"what an `up` would change cannot be told: {error}") from error

    def state(self, fleet: FleetName) -> FleetState:
        """Return what the document says of a fleet.

        Raises:
            HostsError: there is none.
        """
        document = self.rollout.read()
        if document is None:
            raise HostsError("the rollout document is gone")
        return document.fleet(fleet)

    def healthy(self, fleet: FleetName) -> bool:
        """Tell whether every instance of a fleet is ready."""
        return all(Probe(http=f"http://127.0.0.1:{port}/health/ready").check() for port in self.ports[fleet])

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet through the preview listener; what it wrote is removed again.

        Raises:
            HostsError: another version answers, a write was refused, or a trace did not come back.
        """
        self.preview.verify(fleet, self.state(fleet).version)


def is_of(fleet: FleetName, step: Step) -> bool:
    """Tell whether a step is of a fleet."""
    owner = f"observatory:local:Fleet::{fleet}"
    return step.urn.endswith(owner) or step.parent.endswith(owner)


def _only(what: str, owned: Callable[[Step], bool], steps: Sequence[Step]) -> None:
    """Refuse to bring a version together with other changes: what a rollback would undo must be what was done."""
    if foreign := _listed([step for step in steps if not owned(step)]):
        raise HostsError(f"the stack differs from the checkout in more than {what} ({foreign}): `observatory up` first")


def _listed(steps: Sequence[Step]) -> str:
    return ", ".join(f"{step.operation} {step.name}" for step in steps if step.operation not in UNTOUCHED)
