"""What monitoring promises on a real stack: every metric exists, every fault that matters reaches the receiver."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from monitoring import ALERTS, JOBS, Scope
from monitoring.dashboards import DASHBOARDS
from monitoring.recording import all_recordings, recording_rules, stack_recordings
from observatory.database.connection import connect
from observatory.errors import REFUSED
from observatory.files.sockets import short_path
from observatory.operations.demonstration import spans
from observatory.platforms.prometheus import PrometheusMetrics
from observatory.platforms.request_counts import BALANCER_TRAFFIC
from observatory.runtime import Sandbox
from observatory.security.client_certificate import ClientCertificate
from proofs.alerts.monitored import REGISTERED, Monitored
from tests.stack.conftest import a_checkout
from tests.stack.test_faults import EMBEDDED, postmasters
from tests.stack.test_up import client
from tests.support.checkout import Checkout
from tests.support.gates import gate_expressions
from tests.support.phantoms import LiveSeries, phantoms, report

DEADLINE_S = 600  # a busy machine takes five times as long as a quiet one
SCOPE = Scope(stack="local", runbooks="")
SELECTING = {
    **{alert.name: alert.expression(SCOPE) for alert in ALERTS},
    **all_recordings(SCOPE),
    **gate_expressions("local", "blue"),
}
# Panels that may have no value on a healthy stack with traffic; each shows why in its place.
EMPTY_PANELS = {
    "overview: Firing alerts",
    "delivery: Alerts that roll back",
    "database: Network traffic",
    "backups: Restore time (RTO)",
    "backups: Transactions at risk (RPO)",
}
# Fire where other programs use the machine, as during the tests.
OF_THE_MACHINE = {"StorageCpuPressure", "StorageMemoryPressure", "StorageIoStall", "StorageDiskWarning"}


OF_WHAT_IS_DOWN = {"StorageDatabaseDown", "StorageInstanceDown", "StorageServiceDown", "StorageExporterDown"}
OF_THE_BUDGET = {"StorageErrorBudgetFastBurn"}  # fires for minutes after the last failed request


class Monitoring:
    """Prometheus and the receiver of a stack."""

    def __init__(self, stack: Checkout) -> None:
        self.stack, self.ports = stack, stack.ports()
        self._get_answer: Callable[..., httpx.Response] | None = None

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the connections until the end of the block: a new one for each query takes most of its time."""
        with httpx.Client(verify=self.stack.monitoring()) as kept:
            self._get_answer = kept.get
            try:
                yield
            finally:
                self._get_answer = None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the labels and the value of each series."""
        answer = self._get("prometheus", "/api/v1/query", query=expression)
        return [
            {**sample["metric"], "value": float(sample["value"][1])}
            for sample in answer.raise_for_status().json()["data"]["result"]
        ]

    def has_value(self, expression: str) -> bool:
        """Return whether an expression has a value that a panel can draw."""
        return any(math.isfinite(one["value"]) for one in self.query(expression))

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {alert["alertname"] for alert in self.query('ALERTS{alertstate="firing"}')}

    def firing_since(self, count: int, receiver: str) -> set[str]:
        """Return the names of the alerts that came in as firing after so many others."""
        return {alert for alert, status in self.received(receiver)[count:] if status == "firing"}

    def received(self, receiver: str) -> list[tuple[str, str]]:
        """Return (alert, status) as they came in."""
        records = self._get("alert_receiver", "/alerts", receiver=receiver).json()
        alerts = [alert for record in records for alert in record["notification"]["alerts"]]
        return [(alert["labels"]["alertname"], alert["status"]) for alert in alerts]

    def live(self) -> LiveSeries:
        """Return the series of the last minutes."""
        rootfs = Path(self.stack.environment["OBSERVATORY_ROOTFS"])
        return LiveSeries(
            get=lambda path, **asked: self._get("prometheus", path, **asked).json()["data"], rootfs=rootfs
        )

    def metrics(self) -> PrometheusMetrics:
        """Return what gates read."""
        tls = self.stack.home / "etc/tls"
        return PrometheusMetrics(
            url=self.stack.output("prometheus_url"),
            stack="local",
            traffic=BALANCER_TRAFFIC,
            client=ClientCertificate(certificate=tls / "monitoring.pem", authority=tls / "ca.crt"),
        )

    def patroni(self, *, paused: bool) -> None:
        """Have Patroni leave PostgreSQL alone, or look after it again; wait until it knows."""
        change = {"pause": True if paused else None}
        login = self.stack.patroni_login()
        url = f"http://127.0.0.1:{self.ports['patroni']}"
        httpx.patch(f"{url}/config", json=change, auth=login).raise_for_status()
        wait(lambda: bool(httpx.get(f"{url}/patroni").json().get("pause")) is paused)

    def get(self, part: str, path: str) -> str:
        return self._get(part, path).text

    def _get(self, part: str, path: str, **parameters: str) -> httpx.Response:
        url = f"https://127.0.0.1:{self.ports[part]}{path}"
        get = self._get_answer or functools.partial(httpx.get, verify=self.stack.monitoring())
        return get(url, params=parameters).raise_for_status()


def wait(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(1)


def check_backups(stack: Checkout) -> None:
    """Run the check of the backups, whose metrics a new stack lacks; exit code 3: the scheduler runs it just now."""
    wait(lambda: stack.exit_code("scheduler", "run", "backup-check") != REFUSED)


@pytest.fixture(scope="module")
def monitoring(stack: Checkout) -> Monitoring:
    """Of the shared stack, with the metrics of a check of its backups."""
    check_backups(stack)
    return Monitoring(stack)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack that tests break and heal again."""
    with a_checkout(tmp_path_factory.mktemp("broken"), rootfs) as checkout:
        checkout.run("up", *EMBEDDED)
        yield checkout


@pytest.fixture
def broken_monitoring(broken: Checkout) -> Monitoring:
    """Of the stack that tests break; nothing is down any more."""
    monitoring = Monitoring(broken)
    wait(lambda: not monitoring.firing() & OF_WHAT_IS_DOWN and not monitoring.metrics().outages())
    return monitoring


def test_every_scrape_job_has_targets_that_are_up(monitoring: Monitoring) -> None:
    jobs = {job.name for job in JOBS}
    wait(lambda: {up["job"] for up in monitoring.query("up == 1")} == jobs and monitoring.query("up == 0") == [])
    assert {up["stack"] for up in monitoring.query("up")} == {"local"}


def test_every_metric_and_label_of_rules_and_gates_exists(stack: Checkout, monitoring: Monitoring) -> None:
    live, found = monitoring.live(), {"not read yet": [""]}

    def complete() -> bool:
        nonlocal found
        with contextlib.suppress(httpx.HTTPError):
            service.get("/v1/traces?limit=1")  # a read, which an instance that was restarted has not had
        with monitoring.connected():
            found = phantoms(SELECTING, live)
        return not found

    with client(stack) as service, contextlib.suppress(AssertionError):
        wait(complete)
    assert not found, report(found)


def test_a_renamed_metric_is_a_phantom_that_names_the_alerts_it_silences(monitoring: Monitoring) -> None:
    """On the live series: a rule that selects another name than the exporter's is silent."""
    renamed = {alert.name: alert.expression(SCOPE).replace("pg_up{", "pg_alive{") for alert in ALERTS}
    found: dict[str, list[str]] = {}

    def only_renamed() -> bool:
        with monitoring.connected():
            found.clear()
            found.update(phantoms(renamed, monitoring.live()))
        return found.keys() == {'pg_alive{stack="local"} matches no series'}

    wait(only_renamed)
    (silent,) = found.values()
    assert {"StorageDatabaseDown", "StorageExporterDown"} <= set(silent)


def test_recording_rules_have_a_value_for_the_fleet_with_traffic(stack: Checkout, monitoring: Monitoring) -> None:
    items = list(spans(1, now=datetime.now(UTC), seed=1))
    with client(stack) as service:

        def measured() -> bool:
            with contextlib.suppress(httpx.HTTPError):  # the values say whether it works
                service.post("/v1/traces", json={"items": items})
                service.get("/v1/traces?limit=1")
                service.get(f"/v1/traces/{items[0]['trace_id']}")  # a lookup in the cache
            of_fleet = all(monitoring.query(f'{name}{{fleet="blue"}}') for name in recording_rules(SCOPE))
            return of_fleet and all(monitoring.query(name) for name in stack_recordings(SCOPE))

        wait(measured)


def test_every_panel_has_a_value(stack: Checkout, monitoring: Monitoring) -> None:
    panels = {f"{board.name}: {panel.title}": panel for board in DASHBOARDS for panel in board.panels("local")}
    assert {name for name, panel in panels.items() if not panel.empty} & EMPTY_PANELS == set()
    items = list(spans(1, now=datetime.now(UTC), seed=1))
    missing = {
        f"{name}: {query.legend}: {query.expression}": query.on(stack="local", window="1m")
        for name, panel in panels.items()
        for query in panel.queries
        if name not in EMPTY_PANELS
    }

    def complete() -> bool:
        nonlocal missing
        with contextlib.suppress(httpx.HTTPError):  # the values say whether it works
            service.post("/v1/traces", json={"items": items})
            for path in ("/v1/traces?limit=1", f"/v1/traces/{items[0]['trace_id']}"):
                service.get(path)
        with monitoring.connected():
            missing = {name: query for name, query in missing.items() if not monitoring.has_value(query)}
        return not missing

    with client(stack) as service, contextlib.suppress(AssertionError):
        wait(complete)
    assert not missing, "\n".join(missing)


def test_every_annotation_is_a_query(monitoring: Monitoring) -> None:
    for annotation in (each for board in DASHBOARDS for each in board.annotations_of("local")):
        monitoring.query(annotation.on(stack="local"))


def test_weights_are_read_from_the_running_balancer(stack: Checkout, monitoring: Monitoring) -> None:
    def weights() -> dict[str, str]:
        lines = monitoring.get("balancer_stats", "/weights").splitlines()
        return {line.split('"')[1]: line.split()[-1] for line in lines}

    assert weights() == {"blue": "100", "green": "0"}
    try:
        runtime_api(stack, "set map /srv/etc/haproxy/weights.map green 5")
        assert weights() == {"blue": "95", "green": "5"}
    finally:
        runtime_api(stack, "set map /srv/etc/haproxy/weights.map green 0")


def test_requests_are_counted_by_the_balancer(stack: Checkout, monitoring: Monitoring) -> None:
    with client(stack) as service:
        # Where a busy machine is late for two health checks, the balancer answers 503 itself for a moment.
        wait(lambda: service.get("/v1/traces/unknown").status_code == httpx.codes.NOT_FOUND)
    answered = 'route="/v1/traces/{id}",method="GET",status=~"4..",outcome="answered"'
    wait(lambda: monitoring.query(f'balancer_requests_total{{stack="local",fleet="blue",server="blue-1",{answered}}}'))
    wait(lambda: monitoring.query('balancer_request_seconds_bucket{stack="local",fleet="blue",le="1.0"}'))


def test_the_exporters_login_reads_statistics_and_no_data(stack: Checkout) -> None:
    url = make_conninfo(stack.output("admin_database_url"), dbname="observatory", user="monitor")
    with connect(url, purpose="test") as connection:
        assert connection.execute("SELECT count(*) FROM pg_stat_activity WHERE query IS NOT NULL").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM llm_traces")


@pytest.mark.parametrize("door", ["postgres", "pgbouncer"])
def test_the_exporters_login_cannot_log_in_over_tcp(stack: Checkout, door: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"authentication failed|no pg_hba\.conf entry"):
        psycopg.connect(stack.output("database_url"), port=stack.ports()[door], user="monitor", password="guess")


def test_stopped_instances_and_a_stopped_exporter_page(broken: Checkout, broken_monitoring: Monitoring) -> None:
    monitoring, supervisor = broken_monitoring, sandbox(broken).supervisor
    pages = len(monitoring.received("pagerduty"))
    supervisor.stop("postgres-exporter")  # first: its alert takes the longest
    fail_writes(broken, until=lambda: "StorageErrorBudgetFastBurn" in monitoring.metrics().alerts("blue"))
    assert monitoring.metrics().alerts("green") == ()
    assert monitoring.metrics().alerts("blue", since=time.time()) == ()  # a version that comes now is not to blame

    supervisor.stop("storage-green-1")
    wait(lambda: "StorageInstanceDown" in monitoring.firing())
    assert "StorageServiceDown" not in monitoring.firing()  # green gets no traffic

    supervisor.stop("storage-blue-1")
    wait(lambda: ("StorageServiceDown", "firing") in monitoring.received("pagerduty")[pages:])
    wait(lambda: ("StorageExporterDown", "firing") in monitoring.received("pagerduty")[pages:])
    assert "StorageDatabaseDown" not in monitoring.firing()
    wait(lambda: {"StorageServiceDown", "StorageInstanceDown"} <= set(monitoring.metrics().alerts("blue")))
    assert not monitoring.metrics().outages()
    run_remedy(broken, "StorageServiceDown")
    for resolved in ("StorageServiceDown", "StorageExporterDown"):
        wait(lambda resolved=resolved: (resolved, "resolved") in monitoring.received("pagerduty")[pages:])  # type: ignore[misc]
    wait(broken.is_well)


def test_with_patroni_a_killed_postgresql_heals_without_a_page(broken: Checkout, broken_monitoring: Monitoring) -> None:
    """With Patroni paused it pages, and what follows from it is held back; resuming resolves it."""
    monitoring = broken_monitoring
    pages, mails = (len(monitoring.received(receiver)) for receiver in ("pagerduty", "email"))
    kill_postgresql(broken)
    wait(broken.is_well)
    healed = time.time()
    wait(lambda: monitoring.query(f"timestamp(pg_up) > {healed} and pg_up == 1"))
    assert "StorageDatabaseDown" not in monitoring.firing()
    assert monitoring.firing_since(pages, "pagerduty") <= OF_THE_BUDGET
    wait(lambda: ("Watchdog", "firing") in monitoring.received("watchdog"))

    monitoring.patroni(paused=True)
    kill_postgresql(broken)
    wait(lambda: ("StorageDatabaseDown", "firing") in monitoring.received("pagerduty")[pages:])
    assert not postmasters(broken)
    wait(lambda: "StorageInstanceDown" in monitoring.firing())
    assert "StorageExporterDown" not in monitoring.firing()
    assert monitoring.metrics().outages()  # so that no gate takes it for its version's fault

    run_remedy(broken, "StorageDatabaseDown")
    wait(lambda: ("StorageDatabaseDown", "resolved") in monitoring.received("pagerduty")[pages:])
    assert "StorageInstanceDown" not in monitoring.firing_since(mails, "email")
    wait(broken.is_well)


def run_remedy(checkout: Checkout, alert: str) -> None:
    """Run the commands of an alert's runbook as they are written."""
    steps = REGISTERED[alert].runbook.remedy
    commands = [command for step in steps for command in step.filled({"stack": "local"})]
    assert commands
    for command in commands:
        Monitored(checkout).shell(command)


def fail_writes(checkout: Checkout, *, until: Callable[[], bool]) -> None:
    """Take the right to insert from the service and let it try, until something is seen; then give it back."""
    items = list(spans(1, now=datetime.now(UTC), seed=1))
    url = make_conninfo(checkout.output("admin_database_url"), dbname="observatory")
    with connect(url, purpose="test") as admin, client(checkout) as service:

        def seen() -> bool:
            assert service.post("/v1/traces", json={"items": items}).is_server_error
            return until()

        admin.execute("REVOKE INSERT ON llm_traces FROM app")
        try:
            wait(seen)
        finally:
            admin.execute("GRANT INSERT ON llm_traces TO app")


def kill_postgresql(stack: Checkout) -> None:
    """Kill PostgreSQL, and wait until it is gone: until then the stack may still look well."""
    killed = postmasters(stack)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not {*killed} & {*postmasters(stack)})


def runtime_api(stack: Checkout, command: str) -> None:
    """Send one command to HAProxy's runtime API, as a rollout does."""
    with short_path(stack.home / "run") as run, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{run}/haproxy.sock")
        connection.sendall(f"{command}\n".encode())
        assert connection.recv(4096).strip() == b""


def sandbox(stack: Checkout) -> Sandbox:
    return Sandbox(stack.home, Path(stack.environment["OBSERVATORY_ROOTFS"]))
