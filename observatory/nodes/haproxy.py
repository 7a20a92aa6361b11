"""HAProxy: the balancer in front of the fleets, which behaves like an ALB with weighted target groups.

Each fleet is a backend. For each request a random number is compared with the weight in a map file, so a fleet gets its
percentage of the requests whatever its size. The preview listener forwards to the fleet in `X-Observatory-Fleet`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from observatory.nodes import collector, request_metrics
from observatory.nodes.storage import labelled
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.nodes.unit import Paths, TcpReady, Unit, render
from observatory.settings import FleetName, StackSettings

SERVER = "balancer"  # of the certificate
START_PROGRAM = Path(__file__).parent / "programs" / "balancer_start.py"
# The statuses that HAProxy answers with itself, with what the client can do. Where it cannot read the header lines, it
# sends a built-in text of its own that no setting replaces.
OWN_ERRORS: Mapping[int, str] = {
    400: "the balancer cannot read the request; correct it",
    408: "the request arrived too slowly; send it again",
    500: "the balancer failed; send the request again",
    502: "the instance sent no valid response; send the request again",
    503: "no instance can handle the request now; send it again",
    504: "the instance sent no response in time; send the request again",
}


def weights_file(paths: Paths) -> str:
    """Return the path of the map of percentages by fleet, a line each, such as `green 0`."""
    return f"{paths.config}/haproxy/weights.map"


def servers_file(paths: Paths) -> str:
    """Return the path of the list of servers in maintenance, which a start or reload reads."""
    return f"{paths.config}/haproxy/servers.state"


def states_file(paths: Paths) -> str:
    """Return the path of the list of servers in maintenance or down, which each start or reload writes and reads."""
    return f"{paths.run}/haproxy-servers.state"


def backend_server(fleet: FleetName, instance: str) -> str:
    """Return HAProxy's name of an instance."""
    return f"fleet_{fleet}/{instance}"


def runtime_socket(paths: Paths) -> str:
    """Return the path of the socket of HAProxy's runtime API."""
    return f"{paths.run}/haproxy.sock"


def problem(status: int, detail: str = "") -> str:
    """Return the body of one of the balancer's own errors: a problem document (RFC 9457) as the service's are."""
    shown = detail or OWN_ERRORS.get(status, "the balancer forwards no request to this path")
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": shown}
    return json.dumps(document, separators=(",", ":"))


def haproxy(
    settings: StackSettings,
    paths: Paths,
    *,
    instances: Mapping[FleetName, tuple[int, ...]],
) -> Unit:
    """Return the balancer: `instances` are the ports of each fleet.

    The map of weights and the servers in maintenance are not files of the unit, because they change while the balancer
    runs. The map must exist before it starts.
    """
    ports = settings.ports
    directory = f"{paths.config}/haproxy"
    program = f"{directory}/balancer_start.py"
    config = render(
        "haproxy.cfg.j2",
        ports=ports,
        runtime_socket=runtime_socket(paths),
        weights_file=weights_file(paths),
        states_file=states_file(paths),
        instances={fleet: labelled(fleet, targets) for fleet, targets in instances.items()},
        drain_seconds=settings.fleets.drain_seconds,
        own_errors=tuple(OWN_ERRORS),
        problem=problem,
        certificate=combined_file(paths, SERVER),
        monitoring_certificate=combined_file(paths, MONITORING),
        authority=authority_file(paths),
        lines_socket=request_metrics.lines_socket(paths),
        metrics_socket=request_metrics.metrics_socket(paths),
        requests_path=request_metrics.PATH,
        collector_socket=collector.metrics_socket(paths),
        collector_path=collector.PATH,
    )
    return Unit(
        name="haproxy",
        command=(
            *("/usr/bin/python3", "-I", program, "--socket", runtime_socket(paths)),
            *("--maintenance", servers_file(paths), "--state", states_file(paths)),
            *("--launcher", f"{paths.run}/haproxy-start", "--", "-W", "-f", f"{directory}/haproxy.cfg"),
        ),
        ready=TcpReady(port=ports.service),
        priority=40,
        ports={
            "ports.service": ports.service,
            "ports.service_tls": ports.service_tls,
            "ports.preview": ports.preview,
            "ports.balancer_stats": ports.balancer_stats,
        },
        files={f"{directory}/haproxy.cfg": config, program: START_PROGRAM.read_text(encoding="utf-8")},
        reload_signal="USR2",
        runtime_socket=runtime_socket(paths),
        reload_rebinds=True,
        stop_signal="USR1",  # finish what is in flight
        stop_seconds=settings.fleets.drain_seconds + 5,
    )
