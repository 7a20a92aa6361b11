"""Readings of a fleet, or of some of its instances, from Prometheus, for gates.

A value counts only if it was scraped within the last seconds: Prometheus returns older ones for five minutes where a
series did not end in order, as when it was killed itself. Of several series of one instance the newest counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from string import Template

from observatory.delivery.counts import Counts
from observatory.delivery.environment import MetricsUnavailableError, Reading
from observatory.platforms.exported_metrics import SUFFIXES, bare
from observatory.platforms.prometheus_client import PrometheusClient, Series
from observatory.platforms.request_counts import RequestCounts, Traffic
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import FleetName

# `$fleet` has the matchers of a fleet, `$served` those of the instances that are read; `$fresh` is a range.
UP = "up{job='storage',$served}[$fresh]"
STARTED = "process_start_time_seconds{$served}[$fresh]"
VERSIONS = "storage_service_info{$served}[$fresh]"
BUFFERS = (
    "max by (instance) (max by (instance, table) (last_over_time(storage_buffer_size{$served}[$fresh]))"
    " / on (instance) group_left max by (instance) (last_over_time(storage_buffer_capacity{$served}[$fresh])))"
)
POOLS = (
    "max by (instance) (last_over_time(storage_pool_in_use{$served}[$fresh]))"
    " / max by (instance) (last_over_time(storage_pool_capacity{$served}[$fresh]))"
)
POOL = "sum(max by (instance) (last_over_time(storage_pool_capacity{$served}[$fresh])))"
# The service connects as `<name> <fleet> <version>`; pgBouncer passes that on.
SESSIONS = (
    "sum(max by (application_name, instance, state, wait_event, usename) (last_over_time("
    "pg_stat_activity_count{stack='$stack',application_name=~'.+ $color .+',state=~'active|idle in transaction.*'}"
    "[$fresh])))"
)
MEMORY = "max by (instance) (last_over_time(process_resident_memory_bytes{$served}[$fresh]))"
PROMISED = "group by (__name__, instance) (last_over_time({__name__=~'$names',$served}[$fresh]))"
FAILED_CHECKS = "haproxy_server_check_failures_total{$balanced}[$fresh]"
ALERTS = "last_over_time(ALERTS{$fleet,alertstate='firing',rollback='true'}[$fresh])"
# When each alert began, in seconds since the epoch.
ALERTS_BEGAN = "last_over_time(ALERTS_FOR_STATE{$fleet,rollback='true'}[$fresh])"
# An outage fails every write and makes every instance unready whatever its version. The minute covers the time that
# alerts keep firing, the six minutes that of StorageErrorBudgetFastBurn.
OUTAGE = "min_over_time(max by (stack) ($metric{stack='$stack'})[$window:5s]) == 0"
OUTAGES = {
    "pg_up": "the database is down, or was just now: see the alert StorageDatabaseDown",
    "redis_up": "the cache is down, or was just now: see `observatory logs valkey`",
    "pgbouncer_up": "pgBouncer is down, or was just now: see `observatory logs pgbouncer`",
}
BUDGET_ALERT, BUDGET_WINDOW = "StorageErrorBudgetFastBurn", "6m"
FRESH_VALUE = "15s"  # three scrapes


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """A fleet of a stack, or some of its instances, for expressions."""

    stack: str
    fleet: FleetName
    instances: tuple[str, ...] | None = None

    def fill(self, expression: str, **more: str) -> str:
        """Return an expression with its placeholders replaced for this selection."""
        fleet = f"stack='{self.stack}',fleet='{self.fleet}'"
        named = "|".join(self.instances or ())
        return Template(expression).substitute(
            stack=self.stack,
            fleet=fleet,
            served=f"{fleet},instance=~'{named}'" if self.instances is not None else fleet,
            balanced=f"{fleet},server=~'{named}'" if self.instances is not None else fleet,
            fresh=FRESH_VALUE,
            color=self.fleet,
            **more,
        )


@dataclass(kw_only=True)
class PrometheusMetrics:
    """Readings of the fleets of one stack.

    Attributes:
        url: of Prometheus.
        stack: the label of its series.
        traffic: the counters of its requests.
        client: the certificate that Prometheus requires, if any.
    """

    url: str
    stack: str
    traffic: Traffic
    client: ClientCertificate | None = None
    _started: dict[tuple[str, ...], set[float]] = field(default_factory=dict, init=False, repr=False)
    _checks: dict[tuple[str, ...], tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._prometheus = PrometheusClient(url=self.url, client=self.client)
        self._requests = RequestCounts(prometheus=self._prometheus, stack=self.stack, traffic=self.traffic)

    def now(self) -> float:
        """Return the time of Prometheus' clock; raises MetricsUnavailableError."""
        return self._prometheus.now()

    def read(
        self,
        fleet: FleetName,
        instances: Collection[str] | None = None,
        *,
        since: float | None = None,
        promised: Collection[str] = (),
    ) -> Reading:
        """Return the current reading of a fleet, or of these of its instances.

        Raises:
            MetricsUnavailableError: Prometheus does not answer, or does not scrape the instances.
        """
        selection = self._selection(fleet, instances)
        scraped = _newest(self._query(UP, selection))
        expected = set(scraped) if instances is None else set(instances)
        if not expected or not expected <= set(scraped):
            seen = ", ".join(sorted(set(scraped) & expected)) or "no instance"
            raise MetricsUnavailableError(f"Prometheus at {self.url} scrapes {seen} of {fleet}")
        pools, buffers = self._by_instance(POOLS, selection), self._by_instance(BUFFERS, selection)
        memory = self._by_instance(MEMORY, selection)
        full = {name: max(found.get(name, 0.0) for found in (pools, buffers)) for name in {*pools, *buffers}}
        return Reading(
            counts=self._requests.read(fleet, instances),
            failed_checks=self._failed_checks(selection),
            saturation=max(full.values()) if expected <= set(full) else None,
            sessions=self._number(SESSIONS, selection) if instances is None else None,
            pool=self._number(POOL, selection) if instances is None else None,
            memory_bytes=sum(memory.values()) / len(memory) if expected <= set(memory) else None,
            restarts=self._restarts(selection),
            alerts=self.alerts(fleet, since=since),
            missing=tuple(self._missing(selection, scraped, expected, promised)),
        )

    def baseline(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, until: float, seconds: float
    ) -> Counts:
        """Return the requests of a fleet in the seconds before a time; raises MetricsUnavailableError."""
        return self._requests.baseline(fleet, instances, until=until, seconds=seconds)

    def alerts(self, fleet: FleetName, *, since: float | None = None) -> tuple[str, ...]:
        """Return the firing alerts that roll a fleet back, without those that a database outage explains."""
        selection = self._selection(fleet, None)
        firing = {each["metric"]["alertname"] for each in self._query(ALERTS, selection)}
        if firing and since is not None:
            began = self._query(ALERTS_BEGAN, selection)
            firing &= {each["metric"]["alertname"] for each in began if float(each["value"][1]) >= since}
        if BUDGET_ALERT in firing and self._query(OUTAGE, selection, metric="pg_up", window=BUDGET_WINDOW):
            firing.remove(BUDGET_ALERT)
        return tuple(sorted(firing))

    def outages(self) -> tuple[str, ...]:
        """Return what every fleet depends on and is down, or was within the last minute."""
        selection = self._selection("blue", None)
        return tuple(
            text for metric, text in OUTAGES.items() if self._query(OUTAGE, selection, metric=metric, window="1m")
        )

    def _missing(
        self, selection: _Selection, scraped: Mapping[str, float], expected: Collection[str], promised: Collection[str]
    ) -> Iterable[str]:
        """Yield the metrics that instances lack: all of them, those that every version has, and the promised ones."""
        down = sorted(name for name in expected if not scraped[name])
        if down:
            yield f"any kind from {', '.join(down)}: /metrics does not answer"
            return
        for metric, series in (("storage_service_info", VERSIONS), ("process_start_time_seconds", STARTED)):
            if lost := sorted(set(expected) - set(_newest(self._query(series, selection)))):
                yield f"{metric} from {', '.join(lost)}"
        if not promised:
            return
        names = "|".join(name + suffix for name in sorted(promised) for suffix in ("", *SUFFIXES))
        found = {
            (bare(each["metric"]["__name__"]), each["metric"]["instance"])
            for each in self._query(PROMISED, selection, names=names)
        }
        for name in sorted(promised):
            if lost := sorted(each for each in expected if (bare(name), each) not in found):
                yield f"{name} from {', '.join(lost)}, which its manifest promises"

    def _restarts(self, selection: _Selection) -> int:
        """Count the restarts of instances since each was first read with its current version."""
        versions = {
            each["metric"]["instance"]: each["metric"]["version"]
            for each in sorted(self._query(VERSIONS, selection), key=_time)
        }
        restarts = 0
        for instance, began in _newest(self._query(STARTED, selection)).items():
            seen = self._started.setdefault((selection.fleet, instance, versions.get(instance, "")), set())
            seen.add(began)
            restarts += len(seen) - 1
        return restarts

    def _failed_checks(self, selection: _Selection) -> float:
        """Return the failed health checks of the instances since they were first read; a reset counts for nothing."""
        total = 0.0
        for name, value in _newest(self._query(FAILED_CHECKS, selection), label="server").items():
            key = (selection.fleet, name)
            last, failed = self._checks.get(key, (value, 0.0))
            failed += value - last if value >= last else value
            self._checks[key] = (value, failed)
            total += failed
        return total

    def _by_instance(self, expression: str, selection: _Selection) -> dict[str, float]:
        return {each["metric"]["instance"]: float(each["value"][1]) for each in self._query(expression, selection)}

    def _number(self, expression: str, selection: _Selection) -> float | None:
        return next((float(each["value"][1]) for each in self._query(expression, selection)), None)

    def _selection(self, fleet: FleetName, instances: Collection[str] | None) -> _Selection:
        return _Selection(stack=self.stack, fleet=fleet, instances=None if instances is None else tuple(instances))

    def _query(self, expression: str, selection: _Selection, **more: str) -> list[Series]:
        return self._prometheus.query(selection.fill(expression, **more))


def _newest(series: Iterable[Series], label: str = "instance") -> dict[str, float]:
    """Return the newest value of each instance, of raw samples; a server without the label is left out."""
    found = {}
    for each in sorted(series, key=_time):
        if label in each["metric"]:
            found[each["metric"][label]] = float(each["values"][-1][1])
    return found


def _time(series: Series) -> float:
    return float(series["values"][-1][0])
