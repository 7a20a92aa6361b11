"""The local stack, as deliveries see it: HAProxy's map, the program's fleets, instances on loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.delivery.protocols import BalancerError, HostsError
from observatory.delivery.rollout import FileRolloutStore, FleetName, FleetState
from observatory.engine import EngineError, Interrupted, Result, Step
from observatory.nodes import Paths
from observatory.nodes.haproxy import runtime_socket, weights_file
from observatory.runtime import BalancerUnreachable, LiveMap, Probe, RuntimeFault, Sandbox

if TYPE_CHECKING:
    import httpx

UNTOUCHED = ("same", "refresh", "read")
SEEN_SECONDS = 10.0  # for the balancer to see a fleet that is ready: it looks each second
SMOKE_SPANS = 10
MARK = "observatory.verification"  # of rows that nobody pays for: `observatory.database.smoke` removes them


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
        marked: gives the id of a trace whose spans, provider and model `MARK`, are removed at the end of the block.
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
        """Write traces through the preview listener, read them back, and look who answered; they are removed again.

        Raises:
            HostsError: another version answers, a trace was refused or did not come back.
        """
        import httpx  # noqa: PLC0415 - only where it is used

        wanted = self._wanted(fleet)
        try:
            with self.marked() as trace_id, self._client(fleet) as client:
                items = [_smoke_span(trace_id, number) for number in range(SMOKE_SPANS)]
                _expect(client.post("/v1/traces", json={"items": items}), HTTPStatus.CREATED, wanted, fleet)
                answer = client.get(f"/v1/traces/{trace_id}")
                _expect(answer, HTTPStatus.OK, wanted, fleet)
                if {span["span_id"] for span in answer.json()["items"]} != {item["span_id"] for item in items}:
                    raise HostsError(f"{fleet}: trace {trace_id} did not come back as it was written")
                stranger = client.get("/v1/traces", headers={"Authorization": "Bearer nobody"})
                if stranger.status_code != HTTPStatus.UNAUTHORIZED:
                    raise HostsError(f"{fleet}: a stranger's key was answered {stranger.status_code}, not 401")
        except httpx.HTTPError as error:
            raise HostsError(f"{fleet} does not answer at {self.preview_url}: {error}") from error

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


def _expect(answer: httpx.Response, status: int, wanted: FleetState, fleet: FleetName) -> None:
    if answer.status_code != status:
        raise HostsError(f"{fleet}: {answer.request.url.path} answered {answer.status_code}: {answer.text[:300]}")
    version = answer.headers.get("X-Observatory-Version")
    if version != wanted.version:
        raise HostsError(f"{fleet} answers as {version}, not as {wanted.version}")


def _smoke_span(trace_id: str, number: int) -> dict[str, Any]:
    return {
        "ts": datetime.now(UTC).isoformat(),
        "trace_id": trace_id,
        "span_id": f"smoke-{number}",
        "span_name": "smoke",
        "provider": MARK,
        "model": MARK,
        "input_type": "text",
        "input_text": "smoke test of a deployment",
        "duration_ms": 1,
        "status_code": "OK",
    }
