"""The metrics that `/metrics` exposes to Prometheus. A batch with invalid values does not count as a failed write."""

from collections.abc import Iterator
from contextlib import contextmanager

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from .problems import InvalidRequest
from .release import RELEASE

# They would double the number of series, and no query uses them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, from the fastest database response to the default of `STORAGE_DATABASE_TIMEOUT_SECONDS`.
Three bounds per decade, so a quantile is off by a factor of 2.5 at most. The thresholds of alerts (100 ms, 500 ms, 1 s)
are bounds, so the share of slow requests is exact."""


class Metrics:
    """The metrics of the service, in their own registry."""

    def __init__(self, *, fleet: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("storage_service", "Version and fleet of this instance.", registry=self.registry).info(
            {"version": RELEASE.version, "fleet": fleet}
        )
        self.requests = Counter(
            "storage_http_requests",
            "HTTP requests, by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_duration = self._histogram(
            "storage_http_request_duration_seconds", "Duration of HTTP requests in seconds.", "route"
        )
        self.writes = Counter(
            "storage_writes", "Batches written, by outcome: success or error.", ["status"], registry=self.registry
        )
        for status in ("success", "error"):
            self.writes.labels(status)  # a rate needs a sample of 0 before the first increase
        self.items = self._counter("storage_items_accepted", "Items accepted and committed.", "table")
        self.repeated = self._counter(
            "storage_items_repeated", "Accepted items whose row existed, or was sent twice in a transaction.", "table"
        )
        self.write_duration = self._histogram(
            "storage_write_duration_seconds", "Duration from a validated batch to its commit, in seconds.", "table"
        )
        self.query_duration = self._histogram(
            "storage_query_duration_seconds", "Duration of read queries in seconds.", "query"
        )
        self.uploads = self._gauge("storage_uploads", "Request bodies in progress.")
        self.upload_bytes = self._gauge("storage_upload_bytes", "Memory of the request bodies in progress, in bytes.")
        self.responses = self._gauge("storage_responses", "Responses in progress to requests with a key.")
        self.response_bytes = self._gauge("storage_response_bytes", "Memory of the responses in progress, in bytes.")
        self.pending_writes = self._gauge(
            "storage_pending_writes", "Writes in progress whose request body is complete."
        )
        self.buffer_size = Gauge(
            "storage_buffer_size", "Items that wait for their commit, by table.", ["table"], registry=self.registry
        )
        self.buffer_capacity = self._gauge(
            "storage_buffer_capacity", "Maximum number of items of one table that wait for their commit."
        )
        self.pool_in_use = self._gauge("storage_pool_in_use", "Database connections that requests use.")
        self.pool_capacity = self._gauge("storage_pool_capacity", "Maximum number of database connections.")
        self.flushes = Counter(
            "storage_flushes",
            "Transactions that store batches, by outcome: success, error, or refused because of their values.",
            ["status"],
            registry=self.registry,
        )
        for status in ("success", "error", "refused"):
            self.flushes.labels(status)
        self.cache_hits = self._counter("storage_cache_hits", "Reads that the cache answered.", "query")
        self.cache_misses = self._counter("storage_cache_misses", "Reads that the cache could not answer.", "query")
        self.cache_errors = Counter(
            "storage_cache_errors", "Commands that failed at the cache.", registry=self.registry
        )

    @contextmanager
    def write(self, table: str) -> Iterator[None]:
        """Measure the write of one batch."""
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

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(name, documentation, registry=self.registry)

    def _histogram(self, name: str, documentation: str, label: str) -> Histogram:
        return Histogram(name, documentation, [label], registry=self.registry, buckets=LATENCY_BUCKETS)
