"""What Prometheus scrapes of a stack, by job. Another exporter is one line here and its address in the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Job:
    """One kind of target: where its metrics are, and what to ask for.

    `keep` is a regular expression of the metrics to store; without it all are.
    `elastic` targets come and go: losing one is StorageInstanceDown's business, losing all blinds the job.
    """

    name: str
    path: str = "/metrics"
    params: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: str | None = None
    elastic: bool = False


JOBS = (
    Job(name="prometheus"),
    Job(name="alertmanager"),
    Job(name="node"),
    Job(name="postgres"),
    Job(name="patroni"),
    Job(name="pgbouncer"),
    Job(name="pgbackrest"),
    Job(name="redis"),
    Job(name="etcd", keep="etcd_(server|disk|mvcc_db)_.+|process_.+"),  # two thirds of its series are of gRPC
    Job(name="haproxy", params={"scope": ("backend", "server")}),
    Job(name="haproxy-weights", path="/weights"),
    Job(name="storage", elastic=True),
)
