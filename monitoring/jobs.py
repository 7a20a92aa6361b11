"""What Prometheus scrapes of a stack, by job. Another exporter is one line here and its address in the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Platform = Literal["local", "aws"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One kind of target: where its metrics are, and what to ask for.

    `keep` is a regular expression of the metrics to store; without it all are.
    `elastic` targets come and go: losing one is StorageInstanceDown's business, losing all blinds the job.
    `local_only` targets are the stack's on one machine only: on AWS the balancer is no daemon, and Prometheus and
    Alertmanager are the cluster's.
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
    Job(name="patroni"),
    Job(name="pgbouncer"),
    Job(name="pgbackrest"),
    Job(name="redis"),
    Job(name="etcd", keep="etcd_(server|disk|mvcc_db)_.+|process_.+"),  # two thirds of its series are of gRPC
    Job(name="haproxy", params={"scope": ("backend", "server")}, local_only=True),
    Job(name="haproxy-weights", path="/weights", local_only=True),
    Job(name="storage", elastic=True),
)


def jobs_of(platform: Platform) -> tuple[Job, ...]:
    """Return what is scraped of a stack on a platform."""
    return tuple(job for job in JOBS if platform == "local" or not job.local_only)
