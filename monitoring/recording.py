"""Recording rules: request rate, error ratio and latency of each fleet.

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
    """Return the expression of each recorded series by its name."""
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


def _rate(scope: Scope, metric: str, *matchers: str) -> str:
    return f"sum by ({LEVEL}) (rate({scope.select(metric, *matchers)}[{WINDOW}]))"


def _quantile(scope: Scope, metric: str, quantile: float) -> str:
    buckets = f"rate({scope.select(f'{metric}_bucket')}[{WINDOW}])"
    return f"histogram_quantile({quantile}, sum by ({LEVEL}, le) ({buckets})) >= 0"
