"""The balancer of the `local` stack: the traffic weight of each fleet, and the draining instances."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, ResourceProvider, UpdateResult

from components.certificates import Certificate, MonitoringCertificate
from components.dynamic import has_drifted, with_drift, without_provider
from components.local.fleets import Fleet
from components.local.machine import Daemon, Machine, sandbox_of
from observatory.documents.rollout import FileRolloutStore, RolloutDocument, StaleRolloutError
from observatory.nodes import Paths
from observatory.nodes.haproxy import SERVER, backend_server, haproxy, runtime_socket, servers_file, weights_file
from observatory.nodes.request_metrics import request_metrics
from observatory.nodes.storage import labelled
from observatory.nodes.tls import combined_file
from observatory.runtime import BalancerUnreachable, Drift, LiveMap, LiveServers, find_drift
from observatory.settings import FleetName, LocalSettings

START_S = 10.0  # until a HAProxy that the supervisor has just started responds, as after `pulumi destroy` and `up`


@dataclass(frozen=True, kw_only=True)
class TrafficArgs:
    """The fleets, the certificates, and the traffic weights of the rollout document.

    `weights` are percentages; `out` are the draining instances, which get no requests. Both were read from the file
    `document`.
    """

    settings: LocalSettings
    machine: Machine
    trust: MonitoringCertificate
    fleets: Mapping[FleetName, Fleet]
    weights: Mapping[FleetName, int]
    out: Mapping[FleetName, Collection[str]]
    document: Path


class Traffic(pulumi.ComponentResource):
    """HAProxy and the counter of its requests.

    Outputs: `service_url`, weighted over the fleets; `preview_url`, where a header selects the fleet. `balancer` is
    HAProxy's daemon.
    """

    def __init__(self, name: str, args: TrafficArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Traffic", name, None, opts)
        weights = Weights(
            "weights",
            machine=args.machine,
            weights=args.weights,
            out=dict(_servers_out(args)),
            document=args.document,
            draining=args.out,
            opts=pulumi.ResourceOptions(parent=self, deleted_with=args.machine),
        )
        instances = {fleet: component.ports for fleet, component in args.fleets.items()}
        unit = haproxy(args.settings, Paths(), instances=instances)
        after = [weights, *(instance for fleet in args.fleets.values() for instance in fleet.instances)]
        options = pulumi.ResourceOptions(parent=self, depends_on=after, deleted_with=args.machine)
        made = Certificate(SERVER, authority=args.trust.authority, opts=pulumi.ResourceOptions(parent=self))
        combined = pulumi.Output.concat(made.certificate, made.key)
        secret_files = {combined_file(Paths(), SERVER): combined, **args.trust.files}
        self.balancer = Daemon("haproxy", machine=args.machine, unit=unit, secret_files=secret_files, opts=options)
        counter = request_metrics(args.settings, Paths())
        options = pulumi.ResourceOptions(parent=self, depends_on=[self.balancer], deleted_with=args.machine)
        Daemon(counter.name, machine=args.machine, unit=counter, opts=options)
        ports = args.settings.ports
        self.service_url = self.balancer.id.apply(lambda _: f"https://127.0.0.1:{ports.service_tls}")
        self.preview_url = self.balancer.id.apply(lambda _: f"http://127.0.0.1:{ports.preview}")
        self.register_outputs({"service_url": self.service_url, "preview_url": self.preview_url})


def _servers_out(args: TrafficArgs) -> Iterator[tuple[str, int]]:
    """Yield the draining servers with their ports; names that the fleet no longer has are skipped."""
    for fleet, component in args.fleets.items():
        for name, port in labelled(fleet, component.ports).items():
            if name in args.out[fleet]:
                yield backend_server(fleet, name), port


class WeightsProvider(ResourceProvider):
    """Sets the traffic weights of the rollout document.

    Its `diff` reads the running balancer and its files. A deployment changes weights without this program, so the next
    `up` finds no difference; it repairs weights and files that were changed manually.
    """

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Write the files, and set the weights of a running balancer.

        Raises:
            StaleRolloutError: the traffic of the rollout document has changed since the program has read it.
        """
        live, servers = _live(props, patience=START_S), _servers(props, patience=START_S)
        weights, out = _weights(props), _out(props)
        with _current_traffic(props):
            live.keep(weights)
            servers.keep(out)
            if sandbox_of(props).alive() and sandbox_of(props).supervisor.status("haproxy").running:
                live.write(weights)
                servers.set_out(out)
        return CreateResult(id_=live.file, outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare with the running balancer, and with the files that it reads at its start."""
        replaces = ["home"] if _olds["home"] != _news["home"] else []
        wanted = (_weights(_news), set(_out(_news)))
        changes = bool(replaces) or _in_force(_news) != wanted
        return DiffResult(changes=has_drifted("weights", _olds, _drift(_news)) or changes, replaces=replaces)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report what is wrong with the balancer's files, as `drift`; weights that a deployment has changed are not."""
        return ReadResult(id_=id_, outs=with_drift(props, _drift(props, any_weights=True)))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Set the weights."""
        return UpdateResult(outs=self.create(_news).outs)


class Weights(Resource, module="local", name="Weights"):
    """The traffic weight of each fleet, and the draining servers with their ports."""

    def __init__(
        self,
        name: str,
        *,
        machine: Machine,
        weights: Mapping[FleetName, int],
        out: Mapping[str, int],
        document: Path,
        draining: Mapping[FleetName, Collection[str]],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "home": machine.home,
            "rootfs": machine.rootfs,
            "weights": dict(weights),
            "out": dict(out),
            "document": str(document),
            "draining": {fleet: sorted(names) for fleet, names in draining.items()},
        }
        super().__init__(WeightsProvider(), name, props, opts)


@contextmanager
def _current_traffic(props: Mapping[str, Any]) -> Iterator[None]:
    """Hold the balancer's lock, after a check that weights and draining instances are still the rollout document's.

    A rollback needs no deployment lock: one that has returned the traffic meanwhile must not be undone.
    """
    store = FileRolloutStore(Path(props["document"]))
    with store.exclusive():
        current = store.read()
        if current is not None and _traffic_of(current) != (_weights(props), props["draining"]):
            raise StaleRolloutError(
                f"{store.path} has changed since this `up` read it, by a rollback or a deployment: the traffic stays "
                "as it is. Run `observatory up` again"
            )
        yield


def _live(props: Mapping[str, Any], *, patience: float = 0.0) -> LiveMap:
    paths = Paths()
    file, socket = weights_file(paths), runtime_socket(paths)
    return LiveMap(sandbox=sandbox_of(props), file=file, socket=socket, patience=patience)


def _servers(props: Mapping[str, Any], *, patience: float = 0.0) -> LiveServers:
    paths = Paths()
    file, socket = servers_file(paths), runtime_socket(paths)
    return LiveServers(sandbox=sandbox_of(props), file=file, socket=socket, patience=patience)


def _drift(props: Mapping[str, Any], *, any_weights: bool = False) -> tuple[Drift, ...]:
    """Return how the balancer's files differ from those of `props`; with `any_weights` their contents do not count."""
    live, servers = _live(props), _servers(props)
    files = {live.file: live.content(_weights(props)), servers.file: servers.content(_out(props))}
    return find_drift(sandbox_of(props), dict.fromkeys(files) if any_weights else files)


def _out(props: Mapping[str, Any]) -> dict[str, int]:
    return {server: int(port) for server, port in props["out"].items()}


def _traffic_of(document: RolloutDocument) -> tuple[dict[str, str], dict[FleetName, list[str]]]:
    """Return the weights and the draining instances as the inputs have them."""
    draining = {fleet: sorted(names) for fleet, names in document.draining.items()}
    return {fleet: str(weight) for fleet, weight in document.weights.items()}, draining


def _weights(props: Mapping[str, Any]) -> dict[str, str]:
    return {fleet: str(int(weight)) for fleet, weight in props["weights"].items()}  # numbers arrive as floats


def _in_force(props: Mapping[str, Any]) -> tuple[dict[str, str] | None, Collection[str]]:
    """Return weights and draining servers of the running balancer, or of its files; None if there are none."""
    live, servers = _live(props), _servers(props)
    try:
        return live.read(), servers.out()
    except BalancerUnreachable:
        return live.kept(), servers.kept_out()
