"""The storage service: requests, writes, reads, its buffers and connections, and the cache."""

from __future__ import annotations

from monitoring.dashboards.expressions import API_REQUESTS, SERVER_ERRORS, rate, share
from monitoring.dashboards.model import Dashboard, Panel, Query, Section, Thresholds, Unbounded

CUSTOMERS = Unbounded(reason="The usual rate depends on the customers.")
CACHE_HITS = 'storage_cache_hits_total{stack="$stack"}'
CACHE_MISSES = 'storage_cache_misses_total{stack="$stack"}'
NO_WRITE = "No batch was written in the last five minutes."
NO_QUERY = "No query ran in the last five minutes."


def _latency(title: str, metric: str, what: str, empty: str, *alerts: str) -> Panel:
    return Panel(
        title=title,
        description=f"Median, 95th and 99th percentile of {what}, over five minutes.",
        unit="seconds",
        width=12,
        queries=tuple(
            Query(expression=f'stack_fleet:{metric}:{name}_rate5m{{stack="$stack"}}', legend=f"{{{{fleet}}}} {name}")
            for name in ("p50", "p95", "p99")
        ),
        thresholds=Thresholds(warning=1, critical=5),
        alerts=alerts,
        empty=empty,
    )


REQUESTS = Section(
    title="Requests",
    panels=(
        Panel(
            title="Requests by route",
            description="Requests that the instances answered, by route of the API.",
            unit="per second",
            queries=(
                Query(
                    expression=rate(API_REQUESTS, by="method, route"),
                    legend="{{method}} {{route}}",
                ),
            ),
            thresholds=CUSTOMERS,
            empty="No instance has answered a request yet.",
        ),
        Panel(
            title="Requests by status",
            description="Responses by HTTP status. 5xx are failures of the stack, 4xx usually those of a client.",
            unit="per second",
            stacked=True,
            queries=(
                Query(
                    expression=rate(API_REQUESTS, by="status"),
                    legend="{{status}}",
                ),
            ),
            thresholds=CUSTOMERS,
            empty="No instance has answered a request yet.",
        ),
        Panel(
            title="Server errors",
            description="Share of the requests to the API that got a status of 500 or above.",
            unit="ratio",
            queries=(
                Query(
                    expression=share(SERVER_ERRORS, API_REQUESTS, by="fleet"),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Thresholds(warning=0.006, critical=0.0144),
            empty="There were no requests in this range.",
        ),
    ),
)

WRITES = Section(
    title="Writes",
    panels=(
        Panel(
            title="Batches",
            description="Batches that were stored, and batches that failed for another reason than their values.",
            unit="per second",
            queries=(
                Query(
                    expression='sum by (status) (rate(storage_writes_total{stack="$stack"}[$window]))',
                    legend="{{status}}",
                ),
            ),
            thresholds=CUSTOMERS,
            alerts=("StorageErrorBudgetFastBurn", "StorageErrorBudgetSlowBurn"),
        ),
        Panel(
            title="Accepted items",
            description="Items that were committed, by table.",
            unit="per second",
            stacked=True,
            queries=(
                Query(
                    expression='sum by (table) (rate(storage_items_accepted_total{stack="$stack"}[$window]))',
                    legend="{{table}}",
                ),
            ),
            thresholds=CUSTOMERS,
            empty="No item was accepted yet.",
        ),
        Panel(
            title="Transactions that store batches",
            description=(
                "Flushes by outcome. `refused` are batches with values that the database does not accept; `error` are "
                "failures of the database."
            ),
            unit="per second",
            queries=(
                Query(
                    expression='sum by (status) (rate(storage_flushes_total{stack="$stack"}[$window]))',
                    legend="{{status}}",
                ),
            ),
            thresholds=CUSTOMERS,
        ),
        _latency(
            "Write latency",
            "storage_write_duration_seconds",
            "the time from a validated batch to its commit",
            NO_WRITE,
            "StorageWriteLatencyHigh",
        ),
        Panel(
            title="Write buffer",
            description=(
                "Share of the buffer that waits for a commit, of the fullest table of each instance. A full buffer "
                "refuses batches with 503."
            ),
            unit="ratio",
            width=12,
            queries=(
                Query(
                    expression=(
                        'max by (instance) (storage_buffer_size{stack="$stack"} / on (fleet, instance) group_left '
                        'storage_buffer_capacity{stack="$stack"})'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.5, critical=0.9),
            alerts=("StorageWriteBacklog",),
            empty="No instance has received a batch yet.",
        ),
    ),
)

READS = Section(
    title="Reads",
    panels=(
        _latency(
            "Query latency",
            "storage_query_duration_seconds",
            "the duration of read queries in the database",
            NO_QUERY,
            "StorageQueryLatencyHigh",
        ),
        Panel(
            title="Answers from the cache",
            description="Share of the reads that the cache answered, by query.",
            unit="ratio",
            width=6,
            queries=(
                Query(
                    expression=(
                        f"{rate(CACHE_HITS, by='query')} / "
                        f"({rate(CACHE_HITS, by='query')} + {rate(CACHE_MISSES, by='query')} > 0)"
                    ),
                    legend="{{query}}",
                ),
            ),
            thresholds=Unbounded(reason="Reads that are never repeated have no answer in the cache."),
            empty="There were no reads in this range.",
        ),
        Panel(
            title="Errors of the cache",
            description="Commands that failed at the cache. The service then reads from the database.",
            unit="per second",
            width=6,
            queries=(
                Query(
                    expression='sum by (fleet) (rate(storage_cache_errors_total{stack="$stack"}[$window]))',
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Thresholds(warning=0.01, critical=1),
            alerts=("StorageCacheDown",),
        ),
    ),
)

INSTANCES = Section(
    title="Instances",
    panels=(
        Panel(
            title="Database connections",
            description="Share of an instance's connections to the database that requests use. At 1 requests wait.",
            unit="ratio",
            queries=(
                Query(
                    expression='storage_pool_in_use{stack="$stack"} / storage_pool_capacity{stack="$stack"}',
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.8, critical=1),
        ),
        Panel(
            title="Memory",
            description="Resident memory of each instance.",
            unit="bytes",
            queries=(
                Query(expression='process_resident_memory_bytes{stack="$stack",job="storage"}', legend="{{instance}}"),
            ),
            thresholds=Thresholds(warning=400_000_000, critical=500_000_000),
        ),
        Panel(
            title="Processor",
            description="Cores that each instance uses.",
            unit="count",
            queries=(
                Query(
                    expression='rate(process_cpu_seconds_total{stack="$stack",job="storage"}[$window])',
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.8, critical=0.95),
        ),
        Panel(
            title="Requests in progress",
            description="Request bodies, writes and responses that are in progress in all instances.",
            unit="count",
            queries=tuple(
                Query(expression=f'sum by (stack) ({metric}{{stack="$stack"}})', legend=legend)
                for metric, legend in (
                    ("storage_uploads", "request bodies"),
                    ("storage_pending_writes", "writes"),
                    ("storage_responses", "responses"),
                )
            ),
            thresholds=Unbounded(reason="The limits are those of the memory, see the next panel."),
        ),
        Panel(
            title="Memory of requests in progress",
            description="Memory of request bodies and responses that are in progress, by instance.",
            unit="bytes",
            queries=(
                Query(
                    expression='storage_upload_bytes{stack="$stack"} + storage_response_bytes{stack="$stack"}',
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=128_000_000, critical=256_000_000),
        ),
        Panel(
            title="Time since the start",
            description="Time since each instance started. A short time outside of a deployment is a restart.",
            unit="seconds",
            kind="stat",
            queries=(
                Query(
                    expression='time() - process_start_time_seconds{stack="$stack",job="storage"}',
                    legend="{{instance}}",
                    instant=True,
                ),
            ),
            thresholds=Unbounded(reason="An instance is young after each deployment."),
        ),
    ),
)

CACHE = Section(
    title="Cache",
    panels=(
        Panel(
            title="Memory of the cache",
            description="Share of its memory limit that the cache uses. At 1 it evicts keys.",
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        'redis_memory_used_bytes{stack="$stack"} / (redis_memory_max_bytes{stack="$stack"} > 0)'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.9, critical=1),
            alerts=("StorageCacheMemoryHigh",),
        ),
        Panel(
            title="Hit rate of the cache",
            description="Share of the looked-up keys that the cache had.",
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        'rate(redis_keyspace_hits_total{stack="$stack"}[5m]) / '
                        '(rate(redis_keyspace_hits_total{stack="$stack"}[5m]) + '
                        'rate(redis_keyspace_misses_total{stack="$stack"}[5m]) > 0)'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.5, falling=True),
            alerts=("StorageCacheHitRateLow",),
            empty="No key was looked up in the last five minutes.",
        ),
        Panel(
            title="Evicted keys",
            description="Keys that the cache removed because its memory was full.",
            unit="per second",
            queries=(
                Query(
                    expression='rate(redis_evicted_keys_total{stack="$stack"}[$window])',
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=100),
        ),
    ),
)

SERVICE = Dashboard(
    name="service",
    title="Storage: service",
    description="Requests, writes and reads of the storage service, its instances and its cache.",
    sections=(REQUESTS, WRITES, READS, INSTANCES, CACHE),
)
