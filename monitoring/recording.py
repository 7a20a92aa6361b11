"""Recording rules: the key metrics of each fleet, of the database, and of its machine.

Names follow Prometheus' convention `level:metric:operations`. Without traffic, ratios and latencies have no value,
neither 0 nor NaN, because nothing was measured.
"""

from __future__ import annotations

from monitoring.model import Scope

WINDOW = "5m"
LEVEL = "stack, fleet"
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LATENCIES = ("storage_write_duration_seconds", "storage_query_duration_seconds")


def recording_rules(scope: Scope) -> dict[str, str]:
    """Return the expression of each recorded series of the fleets by its name."""
    writes = _rate(scope, "storage_writes_total")
    errors = _rate(scope, "storage_writes_total", 'status="error"')
    return {
        "stack_fleet:storage_http_requests:rate5m": _rate(scope, "storage_http_requests_total"),
        "stack_fleet:storage_writes:rate5m": writes,
        "stack_fleet:storage_writes_errors:ratio_rate5m": f"{errors} / ({writes} > 0)",
        **{
            f"stack_fleet:{metric}:{name}_rate5m": _quantile(scope, metric, quantile)
            for metric in LATENCIES
            for name, quantile in QUANTILES.items()
        },
    }


def stack_recordings(scope: Scope) -> dict[str, str]:
    """Return the expression of each recorded series of the database and its machine, by its name."""

    def rate(metric: str, *matchers: str) -> str:
        return f"sum by (stack) (rate({scope.select(metric, *matchers)}[{WINDOW}]))"

    def largest(metric: str, *matchers: str) -> str:
        return f"max by (stack) ({scope.select(metric, *matchers)})"

    hits, reads = rate("pg_stat_database_blks_hit"), rate("pg_stat_database_blks_read")
    found, missed = rate("redis_keyspace_hits_total"), rate("redis_keyspace_misses_total")
    idle = scope.select("node_cpu_seconds_total", 'mode="idle"')
    requests, errors = (rate("storage_http_requests_total", *matchers) for matchers in ((), ('status=~"5.."',)))
    pools = scope.select("pgbouncer_databases_current_connections", 'name!="pgbouncer"')
    sizes = scope.select("pgbouncer_databases_pool_size", 'name!="pgbouncer"')
    available, size = scope.select("node_filesystem_avail_bytes"), scope.select("node_filesystem_size_bytes")
    return {
        "stack:storage_http_requests:rate5m": requests,
        "stack:storage_http_errors:ratio_rate5m": f"({errors} or 0 * {requests}) / ({requests} > 0)",
        "stack:pg_connections:sum": f"sum by (stack) ({scope.select('pg_stat_activity_count')})",
        "stack:pgbouncer_pool_connections:ratio": f"sum by (stack) ({pools}) / (sum by (stack) ({sizes}) > 0)",
        "stack:pg_transactions:rate5m": (
            f"{rate('pg_stat_database_xact_commit')} + {rate('pg_stat_database_xact_rollback')}"
        ),
        "stack:pg_statement_seconds:mean_rate5m": (
            f"{rate('pg_stat_statements_seconds_total')} / ({rate('pg_stat_statements_calls_total')} > 0)"
        ),
        "stack:pg_buffer_hits:ratio_rate5m": f"{hits} / ({hits} + {reads} > 0)",
        "stack:cache_hits:ratio_rate5m": f"{found} / ({found} + {missed} > 0)",
        "stack:pg_replication_lag_seconds:max": largest("pg_replication_lag_seconds"),
        "stack:node_cpu_busy:ratio_rate5m": f"1 - avg by (stack) (rate({idle}[{WINDOW}]))",
        "stack:node_memory_used:ratio": (
            f"1 - {largest('node_memory_MemAvailable_bytes')} / {largest('node_memory_MemTotal_bytes')}"
        ),
        "stack:node_disk_operations:rate5m": (
            f"{rate('node_disk_reads_completed_total')} + {rate('node_disk_writes_completed_total')}"
        ),
        "stack:node_network_received_bytes:rate5m": rate("node_network_receive_bytes_total", 'device!="lo"'),
        "stack:node_network_sent_bytes:rate5m": rate("node_network_transmit_bytes_total", 'device!="lo"'),
        "stack:node_filesystem_free:ratio_min": f"min by (stack) ({available} / {size})",
    }


def all_recordings(scope: Scope) -> dict[str, str]:
    """Return the expression of every recorded series by its name."""
    return {**recording_rules(scope), **stack_recordings(scope)}


def _rate(scope: Scope, metric: str, *matchers: str) -> str:
    return f"sum by ({LEVEL}) (rate({scope.select(metric, *matchers)}[{WINDOW}]))"


def _quantile(scope: Scope, metric: str, quantile: float) -> str:
    buckets = f"rate({scope.select(f'{metric}_bucket')}[{WINDOW}])"
    return f"histogram_quantile({quantile}, sum by ({LEVEL}, le) ({buckets})) >= 0"
