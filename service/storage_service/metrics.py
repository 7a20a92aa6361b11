"""What Prometheus reads at `/metrics`. A batch that the client got wrong is no failed write."""

from collections.abc import Iterator
from contextlib import contextmanager

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from .problems import InvalidRequest
from .release import RELEASE

# They would be a second series for each, which nobody reads.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, seconds. From the fastest answer of a database to the time limit after which the service gives up
(`STORAGE_DATABASE_TIMEOUT_SECONDS`). Three to the decade, so that a quantile read off them is at most 2.5 times wrong;
with bounds where alerts have their thresholds (100 ms, 500 ms, 1 s), so that a share of slow requests is exact."""


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self, *, fleet: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("storage_service", "Version and fleet of this instance.", registry=self.registry).info(
            {"version": RELEASE.version, "fleet": fleet}
        )
        self.requests = Counter(
            "storage_http_requests", "HTTP requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_duration = self._histogram("storage_http_request_duration_seconds", "Time to answer.", "route")
        self.writes = Counter(
            "storage_writes", "Batches written, by outcome: success or error.", ["status"], registry=self.registry
        )
        for status in ("success", "error"):
            self.writes.labels(status)  # a rate needs the zero before the first
        self.items = self._counter("storage_items_accepted", "Items accepted.", "table")
        self.write_duration = self._histogram(
            "storage_write_duration_seconds", "Time from a checked batch to its commit.", "table"
        )
        self.query_duration = self._histogram("storage_query_duration_seconds", "Time to read rows.", "query")
        self.pending_writes = Gauge(
            "storage_pending_writes", "Write requests admitted and not answered.", registry=self.registry
        )
        self.buffer_size = Gauge(
            "storage_buffer_size", "Items that wait for their commit.", ["table"], registry=self.registry
        )
        self.buffer_capacity = Gauge(
            "storage_buffer_capacity", "Items of one table that may wait for their commit.", registry=self.registry
        )
        self.pool_in_use = Gauge(
            "storage_pool_in_use", "Database connections that are lent to requests.", registry=self.registry
        )
        self.pool_capacity = Gauge(
            "storage_pool_capacity", "Database connections that may be lent at once.", registry=self.registry
        )
        self.flushes = Counter(
            "storage_flushes",
            "Transactions that stored batches, by outcome: success, error, or refused for the values in them.",
            ["status"],
            registry=self.registry,
        )
        for status in ("success", "error", "refused"):
            self.flushes.labels(status)
        self.cache_hits = self._counter("storage_cache_hits", "Answers out of the cache.", "query")
        self.cache_misses = self._counter("storage_cache_misses", "Answers that the cache did not have.", "query")
        self.cache_errors = Counter(
            "storage_cache_errors", "Questions that the cache failed to answer.", registry=self.registry
        )

    @contextmanager
    def write(self, table: str) -> Iterator[None]:
        """Measure one batch on its way into the database."""
        try:
            with self.write_duration.labels(table).time():
                yield
        except InvalidRequest:
            raise
        except BaseException:
            self.writes.labels("error").inc()
            raise
        self.writes.labels("success").inc()

    def _counter(self, name: str, documentation: str, label: str) -> Counter:
        return Counter(name, documentation, [label], registry=self.registry)

    def _histogram(self, name: str, documentation: str, label: str) -> Histogram:
        return Histogram(name, documentation, [label], registry=self.registry, buckets=LATENCY_BUCKETS)
