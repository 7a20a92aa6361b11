"""Prometheus: scrapes every part of a stack, evaluates the rules of `monitoring`, sends alerts to Alertmanager.

It scrapes and evaluates every 5 s on every stack: a stack has about a dozen targets, and detection takes most of the
time between a fault and its page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from monitoring import Job, Scope, Thresholds, rule_file
from observatory.nodes.alertmanager import runbooks_url
from observatory.nodes.storage import labelled
from observatory.nodes.unit import Paths, Unit, yaml_text
from observatory.nodes.web import WebAccess, client_config
from observatory.settings import FleetName, Ports, StackSettings
from observatory.settings.cron import Cron, longest_pause

INTERVAL = "5s"
RETENTION_TIME, RETENTION_SIZE = "2d", "256MB"  # the longest window of a rule is 6 h
# After the time of its schedule: a backup takes some time, a drill that failed is repeated.
BACKUP_TAKES, DRILL_REPEATED = timedelta(hours=2), timedelta(days=1)
# The heap may grow by half, not double, between collections: a third less memory for one percent of a core.
GARBAGE_COLLECTION_PERCENT = 50
# Alertmanager treats an alert as resolved four times as long after it was last sent, and so the heartbeat of a dead
# Prometheus ends after a minute.
RESEND = "15s"
FLEET_OF_BACKEND = {"source_labels": ["proxy"], "regex": "fleet_(.+)", "target_label": "fleet"}


@dataclass(frozen=True, kw_only=True)
class Scrape:
    """A scrape job and the setting of its port; None for the fleets, whose instances have ports of their own.

    On `local`, a `guarded` target requires the monitoring certificate.
    """

    job: Job
    port: str | None = None
    guarded: bool = False


def prometheus(
    settings: StackSettings,
    paths: Paths,
    *,
    stack: str,
    instances: Mapping[FleetName, tuple[int, ...]],
    scrapes: Sequence[Scrape],
) -> Unit:
    """Return a stack's Prometheus with the jobs `scrapes`; `instances` has the ports of each fleet's instances."""
    port, web = settings.ports.prometheus, WebAccess(name="prometheus", paths=paths)
    directory = f"{paths.config}/prometheus"
    rules = f"{directory}/rules.yaml"
    scope = Scope(
        stack=stack,
        runbooks=runbooks_url(settings),
        thresholds=thresholds(settings),
        jobs=tuple(scrape.job for scrape in scrapes),
    )
    config = {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": "4s", "evaluation_interval": INTERVAL},
        "rule_files": [rules],
        "alerting": {
            "alertmanagers": [{**_tls(paths), "static_configs": [_loopback(settings.ports.alertmanager)]}],
        },
        "scrape_configs": [
            _scrape(scrape, stack, _targets(scrape, settings.ports, instances), paths) for scrape in scrapes
        ],
    }
    return Unit(
        name="prometheus",
        command=(
            "/usr/bin/prometheus",
            f"--config.file={directory}/prometheus.yaml",
            f"--storage.tsdb.path={paths.data}/prometheus",
            f"--storage.tsdb.retention.time={RETENTION_TIME}",
            f"--storage.tsdb.retention.size={RETENTION_SIZE}",
            f"--web.listen-address=127.0.0.1:{port}",
            *web.options,
            f"--web.external-url=https://127.0.0.1:{port}",
            f"--rules.alert.resend-delay={RESEND}",
            "--log.level=warn",
        ),
        environment={"GOGC": str(GARBAGE_COLLECTION_PERCENT)},
        ready=web.ready(port, "/-/ready"),
        watches_secrets=True,
        priority=70,
        ports={"ports.prometheus": port},
        files={
            f"{directory}/prometheus.yaml": yaml_text(config),
            rules: rule_file(scope),
            **web.files,
        },
        directories=(f"{paths.data}/prometheus",),
        reload_signal="HUP",
        check=("/usr/bin/promtool", "check", "config", f"{directory}/prometheus.yaml"),
        reload_metrics="prometheus_config_last_reload",
        stop_seconds=30,
    )


def thresholds(settings: StackSettings) -> Thresholds:
    """Return the thresholds of a stack's alerts."""
    schedule = settings.schedule
    backups = longest_pause(Cron.parse(schedule.backup_full), Cron.parse(schedule.backup_differential))
    drills = longest_pause(Cron.parse(schedule.restore_drill))
    return Thresholds(
        **settings.alerts.model_dump(),
        backup_age_seconds=int((backups + BACKUP_TAKES).total_seconds()),
        drill_age_seconds=int((drills + DRILL_REPEATED).total_seconds()),
    )


def _scrape(scrape: Scrape, stack: str, targets: list[dict[str, Any]], paths: Paths) -> dict[str, Any]:
    """Return one scrape job; every series carries the stack's name."""
    job = scrape.job
    return {
        "job_name": job.name,
        **(_tls(paths) if scrape.guarded else {}),
        "metrics_path": job.path,
        **({"params": {key: list(values) for key, values in job.params.items()}} if job.params else {}),
        "static_configs": [{**target, "labels": {"stack": stack, **target.get("labels", {})}} for target in targets],
        "metric_relabel_configs": list(_relabelings(job)),
    }


def _tls(paths: Paths) -> dict[str, Any]:
    """Return the part of a configuration that connects over TLS and shows the monitoring certificate."""
    return {"scheme": "https", "tls_config": client_config(paths)}


def _relabelings(job: Job) -> Iterator[dict[str, Any]]:
    """Yield the relabelings: the balancer's series get the label of their fleet, unused series are dropped."""
    if job.name == "haproxy":
        yield FLEET_OF_BACKEND
    if job.keep:
        yield {"source_labels": ["__name__"], "regex": job.keep, "action": "keep"}


def _targets(scrape: Scrape, ports: Ports, instances: Mapping[FleetName, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Return the targets of a job on this machine."""
    return [_loopback(getattr(ports, scrape.port))] if scrape.port else list(_storage_targets(instances))


def _storage_targets(instances: Mapping[FleetName, tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    """Yield each instance with its name in the balancer."""
    for fleet, ports in instances.items():
        for label, port in labelled(fleet, ports).items():
            yield {**_loopback(port), "labels": {"fleet": fleet, "instance": label}}


def _loopback(port: int) -> dict[str, Any]:
    return {"targets": [f"127.0.0.1:{port}"]}
