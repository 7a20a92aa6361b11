"""All properties of a daemon follow from the list of daemons."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.aws.firewall import rules
from monitoring import JOBS, Job
from observatory.documents.rollout import RolloutDocument
from observatory.nodes import HttpReady, Unit, collector, daemons, request_metrics
from observatory.nodes.aws import database_user_data
from observatory.nodes.daemons import Daemon, LocalMachine, local_units, packages, scrapes
from observatory.nodes.pgbackrest import S3Repository
from observatory.nodes.prometheus import Scrape
from observatory.platforms.local.status import daemon_statuses
from observatory.runtime import Sandbox, rootfs_path
from observatory.settings import AwsSettings, LocalSettings, load_file

ROOT = Path(__file__).resolve().parent.parent.parent
ROLLOUT = RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue")


def dummy_unit(port: int) -> Unit:
    return Unit(
        name="dummy-exporter",
        command=("/usr/bin/prometheus-dummy-exporter", f"--port={port}"),
        ready=HttpReady(port=port, path="/"),
        priority=50,
        ports={"ports.trial": port},
    )


DUMMY = Daemon(
    name="dummy-exporter",
    packages=("prometheus-dummy-exporter",),
    local=lambda at: (dummy_unit(at.settings.ports.trial),),
    database=lambda at: (dummy_unit(at.settings.ports.trial),),
    scrapes=(Scrape(job=Job(name="dummy"), port="trial"),),
    packaged_services=("prometheus-dummy-exporter",),
    memory_max="64M",
)


RECEIVERS = {
    "slack": {"webhook_file": "slack", "channel": "#alerts"},
    "pagerduty": {"routing_key_file": "pagerduty"},
    "email": {"to": "a@example.org", "sender": "b@example.org", "smarthost": "mail.example.org:587"},
    "ticket": {"url_file": "ticket"},
    "heartbeat": {"url_file": "heartbeat"},
}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list has one daemon more."""
    monkeypatch.setattr(daemons, "LISTED", (*daemons.LISTED, DUMMY))


def production() -> AwsSettings:
    settings = load_file(ROOT / "Pulumi.production.yaml")
    assert isinstance(settings, AwsSettings)
    return settings


def machine() -> LocalMachine:
    return LocalMachine(settings=LocalSettings(), rollout=ROLLOUT, stack="local")


def prometheus_files() -> list[str]:
    (unit,) = (unit for daemon, unit in local_units(machine()) if daemon.name == "prometheus")
    return list(unit.files.values())


def database_config() -> dict[str, list[object]]:
    text = database_user_data(
        production(),
        address="10.20.128.10",
        secret="arn",
        data_volume="vol-1",
        wal_volume="vol-2",
        buckets=(S3Repository(bucket="b", region="eu-central-1", key="k"),),
        cache_url="rediss://cache:6379",
    )
    return dict(yaml.safe_load(text))


@pytest.mark.usefixtures("listed")
def test_the_status_has_a_row_for_it(tmp_path: Path, rootfs: Path) -> None:
    rows = daemon_statuses(Sandbox(tmp_path / "home", rootfs), LocalSettings(), ROLLOUT, "local")
    row = next(row for row in rows if row.name == "dummy-exporter")
    assert (row.address, row.health) == ("127.0.0.1:18300", "stopped")


@pytest.mark.usefixtures("listed")
def test_the_local_root_filesystem_has_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OBSERVATORY_ROOTFS", raising=False)
    assert "prometheus-dummy-exporter" in packages("local")
    others = [package for package in packages("local") if package != "prometheus-dummy-exporter"]
    assert rootfs_path(tmp_path, packages("local")) != rootfs_path(tmp_path, others)


@pytest.mark.usefixtures("listed")
def test_a_machine_on_ec2_installs_it_and_runs_our_unit_instead_of_the_packages_service() -> None:
    config = database_config()
    assert "prometheus-dummy-exporter" in config["packages"]
    assert "prometheus-dummy-exporter.service" in config["bootcmd"][0]  # type: ignore[operator]
    (unit,) = (
        str(file["content"])  # type: ignore[index]
        for file in config["write_files"]
        if file["path"] == "/etc/systemd/system/observatory-dummy-exporter.service"  # type: ignore[index]
    )
    assert "MemoryMax=64M" in unit
    assert "observatory-dummy-exporter.service" in str(config["runcmd"])


def test_prometheus_reads_the_balancers_programs_by_the_paths_that_it_forwards() -> None:
    config = yaml.safe_load(next(text for text in prometheus_files() if "scrape_configs" in text))
    paths = {job["job_name"]: job["metrics_path"] for job in config["scrape_configs"]}
    assert (paths["collector"], paths["haproxy-requests"]) == (collector.PATH, request_metrics.PATH)
    assert paths["haproxy"] == "/metrics"


@pytest.mark.usefixtures("listed")
def test_prometheus_reads_it_and_the_operations_vpc_reaches_its_port() -> None:
    config = yaml.safe_load(next(text for text in prometheus_files() if "scrape_configs" in text))
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "dummy")
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:18300"]
    settings = production()
    reached = {rule.port for rule in rules(settings) if rule.target == "database"}
    assert settings.ports.trial in reached
    assert [scrape.job.name for scrape in scrapes("database", "fleet")][-1] == "dummy"


@pytest.mark.usefixtures("listed")
def test_the_alert_on_a_job_that_does_not_answer_covers_it() -> None:
    assert any('absent(up{stack="local",job="dummy"})' in text for text in prometheus_files())


def test_every_job_of_the_registry_is_scraped_and_no_other() -> None:
    assert tuple(scrape.job for scrape in scrapes("local")) == JOBS


def test_a_daemon_has_one_entry_for_a_kind_of_machine_and_its_unit_its_name() -> None:
    entries = [(daemon.name, kind) for daemon in daemons.daemons() for kind in daemon.machines]
    assert len(set(entries)) == len(entries)
    for daemon, unit in local_units(machine()):
        assert unit.name.startswith(daemon.name)


def test_daemons_start_in_the_order_of_their_priority() -> None:
    priorities = [unit.priority for _daemon, unit in local_units(machine())]
    assert priorities == sorted(priorities)


def test_libyaml_writes_the_files_that_pyyaml_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack whose files were written without it keeps them."""
    settings = LocalSettings.model_validate({"receivers": RECEIVERS})

    def rendered() -> list[Unit]:
        units = local_units(LocalMachine(settings=settings, rollout=ROLLOUT, stack="local"))
        return [unit for _, unit in units]

    by_libyaml = rendered()
    monkeypatch.setattr(yaml, "CSafeDumper", yaml.SafeDumper)
    assert rendered() == by_libyaml
