"""The local stack, as deliveries see it: HAProxy's map, the program's fleets, instances on loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from observatory.delivery.protocols import BalancerError, HostsError
from observatory.delivery.rollout import FileRolloutStore, FleetName, FleetState
from observatory.engine import EngineError, Interrupted, Result, Step
from observatory.nodes import Paths
from observatory.nodes.haproxy import runtime_socket, weights_file
from observatory.platforms.smoke import exercise
from observatory.runtime import BalancerUnreachable, LiveMap, Probe, RuntimeFault, Sandbox

if TYPE_CHECKING:
    import httpx

UNTOUCHED = ("same", "refresh", "read")
SEEN_SECONDS = 10.0  # for the balancer to see a fleet that is ready: it looks each second


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


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
        preview_url: the listener where a header chooses the fleet.
        api_key: that may read and write.
        plan: says what an `up` would do.
        up: does it.
        marked: gives the id of rows that are removed at the end of the block.
    """

    rollout: FileRolloutStore
    ports: Mapping[FleetName, Sequence[int]]
    preview_url: str
    api_key: str = field(repr=False)
    plan: Callable[[], Result]
    up: Callable[[], object]
    marked: Callable[[], AbstractContextManager[str]]

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
        self._wait_seen(fleet)

    def healthy(self, fleet: FleetName) -> bool:
        """Tell whether every instance of a fleet is ready."""
        return all(Probe(http=f"http://127.0.0.1:{port}/health/ready").check() for port in self.ports[fleet])

    def verify(self, fleet: FleetName) -> None:
        """Exercise a fleet through the preview listener; what it wrote is removed again.

        Raises:
            HostsError: another version answers, a write was refused, or a trace did not come back.
        """
        wanted = self._wanted(fleet)
        with self.marked() as run, self._client(fleet) as client:
            exercise(client, run, who=fleet, version=wanted.version)

    def _wait_seen(self, fleet: FleetName) -> None:
        import httpx  # noqa: PLC0415 - only where it is used

        deadline = time.monotonic() + SEEN_SECONDS
        with self._client(fleet) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/health/ready").status_code == HTTPStatus.OK:
                        return
                time.sleep(0.1)
        raise HostsError(f"{fleet} is installed, and the balancer sees no ready instance of it")

    def _client(self, fleet: FleetName) -> httpx.Client:
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.api_key}", "X-Observatory-Fleet": fleet}
        return httpx.Client(base_url=self.preview_url, headers=headers, timeout=10)

    def _wanted(self, fleet: FleetName) -> FleetState:
        document = self.rollout.read()
        if document is None:
            raise HostsError("the rollout document is gone")
        return document.fleet(fleet)


def _only(fleet: FleetName, steps: Sequence[Step]) -> None:
    """Refuse to bring a version together with other changes: what a rollback would undo must be what was done."""
    owner = f"observatory:local:Fleet::{fleet}"
    changing = [step for step in steps if step.operation not in UNTOUCHED]
    foreign = [step for step in changing if not (step.urn.endswith(owner) or step.parent.endswith(owner))]
    if foreign:
        listed = ", ".join(f"{step.operation} {step.name}" for step in foreign)
        raise HostsError(f"the stack differs from the checkout in more than {fleet} ({listed}): `observatory up` first")
