"""The expressions by which gates read a fleet from Prometheus, by what they read."""

from __future__ import annotations

from observatory.platforms import prometheus
from observatory.platforms.request_counts import BALANCER_TRAFFIC, SERVICE_TRAFFIC, Traffic
from observatory.settings import FleetName

READINGS = ("UP", "STARTED", "VERSIONS", "BUFFERS", "POOLS", "POOL", "SESSIONS", "MEMORY", "FAILED_CHECKS")
ALERTS = ("ALERTS", "ALERTS_BEGAN")


def gate_expressions(stack: str, fleet: FleetName) -> dict[str, str]:
    """Return the expressions for a fleet of a `local` stack."""
    selection = prometheus._Selection(stack=stack, fleet=fleet, instances=(f"{fleet}-1",))
    readings = {f"gate: {name}": selection.fill(getattr(prometheus, name)) for name in (*READINGS, *ALERTS)}
    outages = {
        f"gate: outage, {metric}": selection.fill(prometheus.OUTAGE, metric=metric, window="1m")
        for metric in prometheus.OUTAGES
    }
    counts = {
        f"gate: {metric}": traffic.selector(metric, stack, fleet)
        for traffic in (BALANCER_TRAFFIC, SERVICE_TRAFFIC)
        for metric in _counters(traffic)
    }
    return {**readings, **outages, **counts}


def _counters(traffic: Traffic) -> tuple[str, str]:
    return traffic.requests, traffic.durations
