"""Single instances of the local stack, for rolling updates: HAProxy's servers and the program's daemons."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from observatory.delivery.environment import HostsError, UnjudgedError
from observatory.documents.rollout import other
from observatory.engines.embedded import Step
from observatory.nodes import Paths
from observatory.nodes.haproxy import backend_server, runtime_socket, servers_file
from observatory.nodes.storage import labelled, unit_name
from observatory.platforms.local.balancer import RESTART_SECONDS, balancer_errors
from observatory.platforms.local.hosts import POLL_SECONDS, LocalHosts, is_of
from observatory.platforms.place import Place
from observatory.runtime import LiveServers, Probe, Sandbox
from observatory.settings import FLEETS, FleetName
from observatory.waiting import poll


@dataclass(frozen=True, kw_only=True)
class LocalInstances:
    """The instances of the fleets.

    A draining instance is in HAProxy's maintenance: it gets no new request, requests in flight continue, and HAProxy
    does not check its health while it is updated.

    Attributes:
        hosts: the fleets of the instances.
        sandbox: where HAProxy runs.
        drain_seconds: the time for requests in flight.
    """

    hosts: LocalHosts
    sandbox: Sandbox
    drain_seconds: float

    def names(self, fleet: FleetName) -> tuple[str, ...]:
        """Return the instances of a fleet."""
        return tuple(self._ports(fleet))

    def draining(self) -> Mapping[FleetName, Collection[str]]:
        """Return the instances in maintenance.

        Raises:
            BalancerError: HAProxy does not answer.
        """
        with balancer_errors():
            servers = self._servers.out()
        prefixes = {fleet: backend_server(fleet, "") for fleet in FLEETS}
        return {
            fleet: {server.removeprefix(prefix) for server in servers if server.startswith(prefix)}
            for fleet, prefix in prefixes.items()
        }

    def set_draining(self, draining: Mapping[FleetName, Collection[str]]) -> None:
        """Put these instances in maintenance and end that of all others; write both for HAProxy's next start.

        Raises:
            BalancerError: HAProxy does not answer, or has no such instance.
        """
        with balancer_errors():
            self._servers.set_out({backend_server(fleet, name) for fleet, names in draining.items() for name in names})

    def drain(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Wait until these instances have no request in flight, at most `drain_seconds`.

        Raises:
            BalancerError: HAProxy does not answer.
        """

        def in_flight() -> bool:
            return any(self._servers.in_flight(backend_server(fleet, name)) for name in instances)

        with balancer_errors():
            poll(in_flight, until=lambda busy: not busy, timeout_s=self.drain_seconds, interval_s=POLL_SECONDS)

    def check(self) -> None:
        """Check that an `up` would change nothing.

        Raises:
            HostsError: it would change something, or it cannot be planned.
        """
        if differing := self.hosts.changes():
            raise HostsError(f"the stack differs from the checkout ({differing}): run `observatory up` first")

    def install(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Install the rollout document's version on these instances, by an `up` that may change them only.

        It may also unpack releases, and update the other fleet where that has no traffic.

        Raises:
            HostsError: it would change more, or it failed.
            UnjudgedError: it failed while the database did not accept writes.
        """
        units = {unit_name(name) for name in instances}
        idle = other(fleet) if self.hosts.state(other(fleet)).weight == 0 else None

        def owned(step: Step) -> bool:
            mine = is_of(fleet, step) and (not step.type.endswith(":Daemon") or step.name in units)
            return mine or (idle is not None and is_of(idle, step))

        with self.hosts.judged():
            self.hosts.up_only(", ".join(instances), owned)

    def verify(self, fleet: FleetName, instances: Collection[str]) -> None:
        """Exercise each instance at its own port; the rows that this writes are removed.

        Raises:
            HostsError: another version answers, a write was refused, or a trace cannot be read.
        """
        state = self.hosts.state(fleet)
        for name in instances:
            instance = Place(name=name, url=self.url(fleet, name))
            with self.hosts.judged(UnjudgedError):
                self.hosts.preview.verify(fleet, state.release(name).version, instance=instance)

    def url(self, fleet: FleetName, instance: str) -> str:
        """Return the URL of an instance, which bypasses the balancer."""
        return f"http://127.0.0.1:{self._ports(fleet)[instance]}"

    def ready(self, fleet: FleetName, instances: Collection[str]) -> bool:
        """Return whether every one of these instances is ready."""
        ports = self._ports(fleet)
        return all(Probe(http=f"http://127.0.0.1:{ports[name]}/health/ready").check() for name in instances)

    def respond(self, fleet: FleetName, instances: Collection[str]) -> bool:
        """Return whether every one of these instances responds, ready or not."""
        ports = self._ports(fleet)
        return not any(Probe(http=f"http://127.0.0.1:{ports[name]}/health/live").silence() for name in instances)

    def _ports(self, fleet: FleetName) -> dict[str, int]:
        return labelled(fleet, self.hosts.ports[fleet])

    @property
    def _servers(self) -> LiveServers:
        file, socket = servers_file(Paths()), runtime_socket(Paths())
        return LiveServers(sandbox=self.sandbox, file=file, socket=socket, patience=RESTART_SECONDS)
