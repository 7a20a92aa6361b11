"""The local stack, as deliveries see it: HAProxy's map, the program's fleets, instances on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from observatory.delivery.protocols import BalancerError, HostsError
from observatory.delivery.rollout import FileRolloutStore, FleetName
from observatory.engine import EngineError, Interrupted, Result, Step
from observatory.nodes import Paths
from observatory.nodes.haproxy import runtime_socket, weights_file
from observatory.platforms.preview import Preview
from observatory.runtime import BalancerUnreachable, LiveMap, Probe, RuntimeFault, Sandbox

UNTOUCHED = ("same", "refresh", "read")


@dataclass(frozen=True)
class HaproxyBalancer:
    """The traffic's division by HAProxy's map; only green's percentage is drawn against, so a change is one step."""

    sandbox: Sandbox

    def weights(self) -> Mapping[FleetName, int]:
        """Return the percentages in force.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with _told():
            live = self._map.read()
        return {"blue": int(live["blue"]), "green": int(live["green"])}

    def set_weights(self, weights: Mapping[FleetName, int]) -> None:
        """Put percentages in force, and keep them for HAProxy's next start.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with _told():
            self._map.write({fleet: str(weight) for fleet, weight in weights.items()})

    @property
    def _map(self) -> LiveMap:
        return LiveMap(sandbox=self.sandbox, file=weights_file(Paths()), socket=runtime_socket(Paths()))


@contextlib.contextmanager
def _told() -> Iterator[None]:
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
        try:
            _only(fleet, self.plan().steps)
            self.up()
        except Interrupted as error:
            raise KeyboardInterrupt from error
        except (EngineError, RuntimeFault) as error:
            raise HostsError(f"{fleet} cannot be brought to its version: {error}") from error
        self.preview.wait_seen(fleet)

    def healthy(self, fleet: FleetName) -> bool:
        """Tell whether every instance of a fleet is ready."""
        return all(Probe(http=f"http://127.0.0.1:{port}/health/ready").check() for port in self.ports[fleet])

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet through the preview listener; what it wrote is removed again.

        Raises:
            HostsError: another version answers, a write was refused, or a trace did not come back.
        """
        document = self.rollout.read()
        if document is None:
            raise HostsError("the rollout document is gone")
        self.preview.verify(fleet, document.fleet(fleet).version)


def _only(fleet: FleetName, steps: Sequence[Step]) -> None:
    """Refuse to bring a version together with other changes: what a rollback would undo must be what was done."""
    owner = f"observatory:local:Fleet::{fleet}"
    changing = [step for step in steps if step.operation not in UNTOUCHED]
    foreign = [step for step in changing if not (step.urn.endswith(owner) or step.parent.endswith(owner))]
    if foreign:
        listed = ", ".join(f"{step.operation} {step.name}" for step in foreign)
        raise HostsError(f"the stack differs from the checkout in more than {fleet} ({listed}): `observatory up` first")
