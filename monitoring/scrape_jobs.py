"""The scrape jobs of a stack. A new exporter needs one line here, and its address in `observatory.nodes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Platform = Literal["local", "aws"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One kind of target.

    Attributes:
        name: name of the job, its label `job`.
        path: HTTP path of the metrics.
        params: query parameters of each scrape.
        keep: regular expression of the metrics to store; without it all metrics are stored.
        elastic: the number of targets changes. StorageInstanceDown covers the loss of one target, and
            StorageExporterDown only the loss of all.
        local_only: the job exists on the platform `local` only. On AWS the balancer is not a daemon, and the cluster
            runs Prometheus and Alertmanager.
    """

    name: str
    path: str = "/metrics"
    params: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: str | None = None
    elastic: bool = False
    local_only: bool = False


JOBS = (
    Job(name="prometheus", local_only=True),
    Job(name="alertmanager", local_only=True),
    Job(name="node"),
    Job(name="postgres"),
    Job(name="collector", path="/collector"),
    Job(name="patroni"),
    Job(name="pgbouncer"),
    Job(name="pgbackrest"),
    Job(name="redis"),
    Job(name="etcd", keep="etcd_(server|disk|mvcc_db)_.+|process_.+"),  # drops the series of gRPC, two thirds of all
    Job(name="haproxy", params={"scope": ("backend", "server")}, local_only=True),
    Job(name="haproxy-weights", path="/weights", local_only=True),
    Job(name="haproxy-requests", path="/requests", local_only=True),
    Job(name="storage", elastic=True),
)


def jobs_of(platform: Platform) -> tuple[Job, ...]:
    """Return the scrape jobs of a stack on a platform."""
    return tuple(job for job in JOBS if platform == "local" or not job.local_only)
