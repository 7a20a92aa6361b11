"""The counter of the balancer's requests: metrics of HAProxy's log lines, by fleet, route, status and outcome.

HAProxy sends the lines and forwards Prometheus' scrapes; both connections are unix sockets of the stack's user.
"""

from __future__ import annotations

from pathlib import Path

from observatory.nodes.unit import Paths, Unit
from observatory.nodes.web import guarded_probe
from observatory.settings import StackSettings

PROGRAM = Path(__file__).parent / "programs" / "request_metrics.py"
PATH = "/requests"  # of the metrics, on the balancer's statistics port


def lines_socket(paths: Paths) -> str:
    """Return the path of the socket that HAProxy sends its lines to."""
    return f"{paths.run}/request-lines.sock"


def metrics_socket(paths: Paths) -> str:
    """Return the path of the socket that HAProxy forwards scrapes to."""
    return f"{paths.run}/request-metrics.sock"


def request_metrics(settings: StackSettings, paths: Paths) -> Unit:
    """Return the counter. It starts after the balancer, through which its metrics are read."""
    program = f"{paths.config}/request-metrics/request_metrics.py"
    return Unit(
        name="request-metrics",
        command=(
            *("/usr/bin/python3", "-I", program),
            *("--lines", lines_socket(paths), "--http", metrics_socket(paths)),
        ),
        ready=guarded_probe(paths, settings.ports.balancer_stats, PATH),
        priority=45,
        ports={},
        files={program: PROGRAM.read_text(encoding="utf-8")},
    )
