"""Exporters require the monitoring certificate, and the cache's exporter reads no key: on real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from observatory.documents.rollout import RolloutDocument
from observatory.nodes import Host, Paths
from observatory.nodes.daemons import LocalMachine, local_units
from observatory.nodes.exporters import (
    cache_password_file,
    cache_passwords,
    node_exporter,
    redis_exporter,
)
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.nodes.valkey import EXPORTER_USER, password_file, password_lines, valkey
from observatory.runtime import Sandbox
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import LocalSettings, Ports
from tests.support.certificates import monitoring_certificate, sandbox_certificate
from tests.support.ports import free_ports
from tests.support.sandboxes import start_unit

PROMPT = "the customer's secret prompt"
PATHS = Paths()
ROLLOUT = RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue")
MACHINE = LocalMachine(settings=LocalSettings(), rollout=ROLLOUT, stack="local")


class Exporters:
    """A cache with a prompt, its exporter and the machine's, and the certificate that they require."""

    def __init__(self, sandbox: Sandbox, settings: LocalSettings, client: ClientCertificate) -> None:
        self.sandbox, self.ports, self.client = sandbox, settings.ports, client

    def valkey(self, *command: str, user: str, password: str) -> str:
        """Run a command as a user of the cache, and return the answer."""
        options = ("-p", str(self.ports.valkey), "--user", user, "--pass", password, "--no-auth-warning")
        return self.sandbox.run(["valkey-cli", *options, *command]).stdout

    def get(self, port: int, path: str, **parameters: Any) -> str:
        url = f"https://127.0.0.1:{port}{path}"
        answer = httpx.get(url, params=parameters, verify=self.client.context(), timeout=60)
        return answer.raise_for_status().text


@pytest.fixture(scope="module")
def exporters(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporters]:
    settings = LocalSettings(ports=Ports(**free_ports()))
    sandbox = Sandbox(tmp_path_factory.mktemp("exporters") / "home", rootfs)
    sandbox.start()
    try:
        client = sandbox_certificate(sandbox, tmp_path_factory.mktemp("certificate"))
        sandbox.write_file(password_file(PATHS), password_lines("service", "statistics"))
        sandbox.write_file(cache_password_file(PATHS), cache_passwords(settings, "statistics"))
        for unit in (valkey(settings, PATHS), redis_exporter(settings, PATHS), node_exporter(settings, PATHS)):
            start_unit(sandbox, unit)
        made = Exporters(sandbox, settings, client)
        made.valkey("set", "trace:1", PROMPT, user="default", password="service")
        yield made
    finally:
        sandbox.stop()


@pytest.mark.parametrize("name", ["redis_exporter", "node_exporter"])
def test_a_client_without_the_certificate_gets_nothing(exporters: Exporters, tmp_path: Path, name: str) -> None:
    port = getattr(exporters.ports, name)
    assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 400  # not TLS
    foreign = ClientCertificate(
        certificate=monitoring_certificate(tmp_path).certificate, authority=exporters.client.authority
    )
    for verify in (False, foreign.context()):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://127.0.0.1:{port}/metrics", verify=verify)


def test_the_machines_exporter_reports_processor_disks_load_memory_and_network(exporters: Exporters) -> None:
    """It answers the second time too: a collector that panics ends it."""
    for _ in range(2):
        lines = exporters.get(exporters.ports.node_exporter, "/metrics").splitlines()
    found = {line.partition("{")[0].partition(" ")[0] for line in lines}
    assert found >= {
        *("node_cpu_seconds_total", "node_disk_read_bytes_total", "node_disk_written_bytes_total", "node_load1"),
        *("node_memory_MemAvailable_bytes", "node_network_receive_bytes_total", "node_network_transmit_bytes_total"),
        *("node_vmstat_oom_kill", "node_filesystem_avail_bytes"),
    }


def test_the_caches_exporter_reports_statistics_without_errors(exporters: Exporters) -> None:
    lines = exporters.get(exporters.ports.redis_exporter, "/metrics").splitlines()
    assert "redis_up 1" in lines
    assert any(line.startswith("redis_memory_max_bytes ") for line in lines)
    assert any(line.startswith("redis_keyspace_hits_total ") for line in lines)


def test_the_caches_exporter_prints_no_key_to_anybody(exporters: Exporters) -> None:
    target = f"redis://127.0.0.1:{exporters.ports.valkey}"
    asked = {"target": target, "check-keys": "*", "check-single-keys": "trace:1", "count-keys": "*"}
    text = exporters.get(exporters.ports.redis_exporter, "/scrape", **asked)
    assert PROMPT not in text
    assert "trace:1" not in text


@pytest.mark.parametrize(
    "command",
    [
        ("get", "trace:1"),
        ("scan", "0"),
        ("config", "get", "requirepass"),
        ("slowlog", "get"),
        ("monitor",),
        ("acl", "list"),
    ],
    ids=lambda command: command[0],
)
def test_the_exporters_user_of_the_cache_reads_no_key(exporters: Exporters, command: tuple[str, ...]) -> None:
    assert "NOPERM" in exporters.valkey(*command, user=EXPORTER_USER, password="statistics")


def test_every_listener_of_monitoring_requires_the_certificate() -> None:
    units = {unit.name: unit for _, unit in local_units(MACHINE)}
    config = yaml.safe_load(units["prometheus"].files["/srv/etc/prometheus/prometheus.yaml"])
    plain = {job["job_name"] for job in config["scrape_configs"] if "tls_config" not in job}
    assert plain == {"patroni", "etcd", "storage"}  # docs/security.md names them
    certificate, authority = combined_file(PATHS, MONITORING), authority_file(PATHS)
    for name in ("prometheus", "alertmanager", "node-exporter", "postgres-exporter", "pgbouncer-exporter"):
        assert f"--web.config.file=/srv/etc/{name}/web.yaml" in units[name].command
        server = yaml.safe_load(units[name].files[f"/srv/etc/{name}/web.yaml"])["tls_server_config"]
        assert (server["client_auth_type"], server["client_ca_file"]) == ("RequireAndVerifyClientCert", authority)
    balancer = units["haproxy"].files["/srv/etc/haproxy/haproxy.cfg"]
    port = MACHINE.settings.ports.balancer_stats
    assert f"bind 127.0.0.1:{port} ssl crt {certificate} ca-file {authority} verify required\n" in balancer
    assert not [option for option in units["prometheus"].command if "--web.enable" in option]


def test_on_aws_the_network_limits_the_access() -> None:
    unit = node_exporter(LocalSettings(), PATHS, Host(listen="10.0.0.1", address="10.0.0.1"))
    assert not unit.files
    assert not [option for option in unit.command if option.startswith("--web.config")]
