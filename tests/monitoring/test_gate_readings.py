"""What gates read from a real Prometheus: exact counts, whatever happens to it and to the counters."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from observatory.delivery.counts import Counts, difference
from observatory.delivery.environment import MetricsUnavailableError
from observatory.nodes.unit import HttpReady, Unit
from observatory.platforms.prometheus import PrometheusMetrics
from observatory.platforms.request_counts import BALANCER_TRAFFIC
from observatory.runtime import Sandbox
from observatory.waiting import wait_until
from tests.support.ports import free_port
from tests.support.sandboxes import start_unit

pytestmark = pytest.mark.slow

LINES = "balancer_request_lines_total"
DEADLINE_S = 180.0
ROUTE = "GET /v1/traces"


@dataclass
class Exporter:
    """Shows metrics to Prometheus.

    Attributes:
        requests: by fleet, status and outcome.
        gauges: metrics by name and labels.
        silent: whether it answers 500.
    """

    requests: dict[tuple[str, str, str], int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    silent: bool = False

    def text(self, path: str) -> str:
        """Return the metrics of the balancer and the database, or of an instance."""
        if path == "/instance":
            return self._gauges(lambda name: not name.startswith("pg_"))
        lines = [f'{LINES}{{kind="counted"}} 1']
        for (fleet, status, outcome), count in self.requests.items():
            server = f'fleet="{fleet}",server="{fleet}-1",method="GET",route="/v1/traces"'
            lines += [
                f'balancer_requests_total{{{server},status="{status}",outcome="{outcome}"}} {count}',
                f'balancer_request_seconds_bucket{{{server},le="0.1"}} {count}',
                f'balancer_request_seconds_bucket{{{server},le="+Inf"}} {count}',
            ]
        return "\n".join([*lines, self._gauges(lambda name: name.startswith("pg_"))])

    def _gauges(self, chosen: Callable[[str], bool]) -> str:
        return "".join(f"{name} {value}\n" for name, value in self.gauges.items() if chosen(name))


class Stand:
    """A Prometheus that scrapes the exporter each second, as the balancer and as one instance of each fleet."""

    def __init__(self, sandbox: Sandbox, exporter: Exporter, exporter_port: int) -> None:
        self.sandbox, self.exporter, self._exporter_port = sandbox, exporter, exporter_port
        self.port = free_port()
        self.metrics = PrometheusMetrics(url=f"http://127.0.0.1:{self.port}", stack="s1", traffic=BALANCER_TRAFFIC)

    def start(self, **labels: str) -> None:
        """Start Prometheus, or start it again where the targets get further labels."""
        target = f"127.0.0.1:{self._exporter_port}"

        def job(name: str, **own: str) -> dict[str, Any]:
            return {"job_name": name, "static_configs": [{"targets": [target], "labels": {"stack": "s1", **own}}]}

        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                job("haproxy-requests", **labels),
                {**job("storage"), "metrics_path": "/instance", "static_configs": [
                    {"targets": [target], "labels": {"stack": "s1", "fleet": fleet, "instance": f"{fleet}-1", **labels}}
                    for fleet in ("blue", "green")
                ]},
            ],
        }  # fmt: skip
        command = (
            "/usr/bin/prometheus",
            "--config.file=/srv/etc/prometheus.yaml",
            "--storage.tsdb.path=/srv/data/prometheus",
        )
        unit = Unit(
            name="prometheus",
            command=(*command, f"--web.listen-address=127.0.0.1:{self.port}"),
            ready=HttpReady(port=self.port, path="/-/ready"),
            priority=1,
            ports={},
            files={"/srv/etc/prometheus.yaml": yaml.safe_dump(config)},
            directories=("/srv/data/prometheus",),
        )
        start_unit(self.sandbox, unit)

    def kill(self) -> None:
        """Kill Prometheus by SIGKILL; the supervisor starts it again."""
        pid = self.sandbox.supervisor.status("prometheus").pid
        assert pid
        os.kill(pid, signal.SIGKILL)

    def answers(self, **requests: int) -> None:
        """Add requests to the green fleet, by status; `timeout` is an outcome."""
        for status, count in requests.items():
            named = status.removeprefix("s")
            key = ("green", named, "answered") if named.isdecimal() else ("green", "none", named)
            self.exporter.requests[key] = self.exporter.requests.get(key, 0) + count

    def counted(self, before: Counts, expected: dict[str, float]) -> bool:
        """Return whether the requests since a reading become as expected, and stay so."""

        def now() -> dict[str, float]:
            try:
                found = difference(self.metrics.read("green").counts, before).get(ROUTE)
            except MetricsUnavailableError:
                return {}
            return (
                {key: value for key, value in {**found.statuses, **found.unanswered}.items() if value} if found else {}
            )

        return wait_until(lambda: now() == expected, DEADLINE_S) and _next(now) == expected


@pytest.fixture
def stand(sandbox: Sandbox) -> Iterator[Stand]:
    exporter = Exporter(requests={("green", "200", "answered"): 1000, ("green", "503", "answered"): 100})
    exporter.gauges = {
        "process_start_time_seconds": 1000.0,
        'storage_service_info{version="v0.2.0"}': 1.0,
        "process_resident_memory_bytes": 2.0**20,
        'storage_buffer_size{table="traces"}': 10.0,
        'storage_buffer_size{table="logs"}': 50.0,
        "storage_buffer_capacity": 100.0,
        "storage_pool_in_use": 2.0,
        "storage_pool_capacity": 10.0,
        "pg_up": 1.0,
        'pg_stat_activity_count{application_name="storage-service green v0.2.0",state="idle in transaction"}': 40.0,
        'pg_stat_activity_count{application_name="storage-service green v0.2.0",state="idle"}': 3.0,
        'pg_stat_activity_count{application_name="storage-service blue v0.1.0",state="active"}': 2.0,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500 if exporter.silent else 200)
            self.end_headers()
            self.wfile.write(exporter.text(self.path).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sandbox.start()
    made = Stand(sandbox, exporter, server.server_address[1])
    made.start()
    assert wait_until(lambda: readable(made.metrics), DEADLINE_S)
    yield made
    server.shutdown()
    server.server_close()


def _next(read: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the next reading that is not empty: a scrape that a busy machine missed makes one."""
    found: dict[str, float] = {}

    def is_read() -> bool:
        nonlocal found
        found = read()
        return bool(found)

    wait_until(is_read, DEADLINE_S)
    return found


def readable(metrics: PrometheusMetrics) -> bool:
    try:
        return bool(metrics.read("green").counts)
    except MetricsUnavailableError:
        return False


def seen(condition: Callable[[], object]) -> bool:
    """Wait until Prometheus shows something; a scrape that a busy machine missed shows nothing for a while."""

    def holds() -> bool:
        try:
            return bool(condition())
        except (MetricsUnavailableError, KeyError):
            return False

    return wait_until(holds, DEADLINE_S)


def test_counts_are_exact_through_a_kill_of_prometheus_new_labels_and_a_reset(stand: Stand) -> None:
    before = stand.metrics.read("green").counts
    stand.answers(s200=7, s404=2, timeout=1)
    assert stand.counted(before, {"200": 7, "404": 2, "timeout": 1})  # what was counted before counts for nothing

    stand.kill()
    stand.answers(s200=3, s500=1)
    stand.start(version="v0.2.0")  # a second series of each counter, while the killed one's has not ended
    assert stand.counted(before, {"200": 10, "404": 2, "timeout": 1, "500": 1})

    stand.exporter.requests = {("green", "200", "answered"): 5}  # the program that counts was started again
    assert stand.counted(before, {"200": 15, "404": 2, "timeout": 1, "500": 1})
    assert "blue" not in str(stand.metrics.read("blue").counts)


def test_a_reading_has_the_state_of_the_instances(stand: Stand) -> None:
    def state() -> tuple[object, ...]:
        found = stand.metrics.read("green", promised=("storage_pool_in_use",))
        return found.saturation, found.memory_bytes, found.restarts, found.missing, found.sessions, found.pool

    assert seen(lambda: state() == (0.5, 2.0**20, 0, (), 40.0, 10.0))
    assert stand.metrics.outages() == ()

    stand.exporter.gauges["process_start_time_seconds"] = 2000.0
    assert seen(lambda: stand.metrics.read("green").restarts == 1)
    stand.exporter.gauges["pg_up"] = 0.0
    assert seen(lambda: "StorageDatabaseDown" in str(stand.metrics.outages()))
    promised = ("storage_pool_in_use", "storage_invented")
    lacking = "storage_invented from green-1, which its manifest promises"
    assert seen(lambda: stand.metrics.read("green", promised=promised).missing == (lacking,))
    del stand.exporter.gauges["storage_pool_in_use"], stand.exporter.gauges["storage_buffer_capacity"]
    assert seen(lambda: stand.metrics.read("green").saturation is None)
    stand.exporter.silent = True
    assert seen(lambda: "any kind from green-1" in str(stand.metrics.read("green").missing))


def test_the_baseline_has_the_requests_before_a_time(stand: Stand) -> None:
    begun = stand.metrics.now()
    stand.answers(s200=40, s503=4)
    assert seen(lambda: stand.metrics.baseline("green", until=stand.metrics.now(), seconds=900)[ROUTE].requests == 44)
    found = stand.metrics.baseline("green", until=begun, seconds=60)
    assert found[ROUTE].requests == 0
    assert stand.metrics.baseline("blue", until=begun, seconds=60) == {}


def test_the_error_of_prometheus_is_reported(stand: Stand) -> None:
    with pytest.raises(MetricsUnavailableError, match=r"bad_data: .*parse error"):
        stand.metrics._prometheus.query("sum(")
    stand.sandbox.supervisor.stop("prometheus")
    with pytest.raises(MetricsUnavailableError, match="does not answer"):
        stand.metrics.now()
