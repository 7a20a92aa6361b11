"""Counts of requests from raw samples of counters, so that no window counts a request twice or extrapolates.

A counter that starts again at 0, a Prometheus that was restarted, or two series of one counter, as after a kill, change
nothing: the newest sample of each counter counts, and what it grew by since the sample before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from observatory.delivery.counts import Counts, RouteCounts
from observatory.delivery.environment import MetricsUnavailableError
from observatory.platforms.prometheus_client import PrometheusClient, Series
from observatory.settings import FleetName

FRESH_S = 30  # older samples do not count: six scrapes
SEEN = "1h"  # a counter that was read within this time is not new
STARTED_S = 30.0  # a counter that begins so much later than the first one of a window began at 0

Key: TypeAlias = tuple[str, ...]  # metric, instance, route, and status and outcome, or the bound
Sample: TypeAlias = tuple[float, float]  # time and value


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The counters of a fleet's requests, and how their series are labelled.

    Attributes:
        requests: the counter, with the labels of `route`, `status` and perhaps `outcome`.
        durations: the histogram's counter, with the labels of `route` and `le`.
        alive: a metric that is there whenever the counters can be read.
        matchers: further matchers of the requests that count.
        instance: the label with an instance's name.
        route: the labels that make up a route.
        of_fleet: whether `alive` has the label `fleet`.
    """

    requests: str
    durations: str
    alive: str
    matchers: str
    instance: str
    route: tuple[str, ...]
    of_fleet: bool

    def selector(self, metric: str, stack: str, fleet: FleetName) -> str:
        """Return the selector of a counter of a fleet."""
        return f'{metric}{{stack="{stack}",fleet="{fleet}"{self.matchers}}}'

    def key(self, metric: str, labels: Mapping[str, str]) -> Key:
        """Return what identifies the counter of a series; labels of the target that shows it do not."""
        route = " ".join(labels.get(label, "") for label in self.route)
        instance = labels.get(self.instance, "")
        if metric == self.durations:
            return metric, instance, route, labels.get("le", "+Inf")
        return metric, instance, route, labels.get("status", "none"), labels.get("outcome", "answered")


BALANCER_TRAFFIC = Traffic(
    requests="balancer_requests_total",
    durations="balancer_request_seconds_bucket",
    alive="balancer_request_lines_total",
    matchers=',probe!="true"',
    instance="server",
    route=("method", "route"),
    of_fleet=False,
)
# The metrics of AWS' balancer are minutes late, so the service's own are used there. They lack the balancer's own
# answers while no instance answers; then too few requests are counted, which never passes a gate.
SERVICE_TRAFFIC = Traffic(
    requests="storage_http_requests_total",
    durations="storage_http_request_duration_seconds_bucket",
    alive="storage_service_info",
    matchers=',route=~"/v1/.+"',
    instance="instance",
    route=("route",),
    of_fleet=True,
)


@dataclass(kw_only=True)
class RequestCounts:
    """The counts of one stack's fleets, which only grow.

    Attributes:
        prometheus: of the stack.
        stack: the label of its series.
        traffic: its counters.
    """

    prometheus: PrometheusClient
    stack: str
    traffic: Traffic
    _last: dict[FleetName, dict[Key, float]] = field(default_factory=dict, init=False, repr=False)
    _totals: dict[FleetName, dict[Key, float]] = field(default_factory=dict, init=False, repr=False)

    def read(self, fleet: FleetName, instances: Collection[str] | None = None) -> Counts:
        """Return the counts of a fleet, or of these of its instances, since the first call.

        Raises:
            MetricsUnavailableError: Prometheus does not answer, or has no fresh samples.
        """
        self._check_fresh(fleet)
        newest = {key: samples[-1][1] for key, samples in self._samples(fleet, FRESH_S).items()}
        if fleet not in self._last:
            self._last[fleet] = {**self._seen_before(fleet), **newest}
            self._totals[fleet] = {}
        last, totals = self._last[fleet], self._totals[fleet]
        for key, value in newest.items():
            before = last.get(key, 0.0)
            totals[key] = totals.get(key, 0.0) + (value - before if value >= before else value)
        last.update(newest)
        return self._counts(totals, instances)

    def baseline(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, until: float, seconds: float
    ) -> Counts:
        """Return the requests of a fleet in the seconds before a time; raises MetricsUnavailableError."""
        samples = self._samples(fleet, seconds, at=until)
        first = min((each[0][0] for each in samples.values()), default=0.0)
        return self._counts({key: _growth(each, first) for key, each in samples.items()}, instances)

    def _check_fresh(self, fleet: FleetName) -> None:
        fleets = f',fleet="{fleet}"' if self.traffic.of_fleet else ""
        alive = f'{self.traffic.alive}{{stack="{self.stack}"{fleets}}}'
        if not self.prometheus.query(f"count_over_time({alive}[{FRESH_S}s])"):
            raise MetricsUnavailableError(
                f"Prometheus at {self.prometheus.url} has no {alive} of the last {FRESH_S} s: requests are not "
                "counted; `observatory up` starts what counts them"
            )

    def _samples(self, fleet: FleetName, seconds: float, *, at: float | None = None) -> dict[Key, list[Sample]]:
        """Return the samples of each counter in the seconds before a time, in order."""
        found: dict[Key, list[Sample]] = {}
        for metric in (self.traffic.requests, self.traffic.durations):
            expression = f"{self.traffic.selector(metric, self.stack, fleet)}[{seconds:.0f}s]"
            for series in self.prometheus.query(expression, at=at):
                found.setdefault(self.traffic.key(metric, series["metric"]), []).extend(_values(series))
        return {key: sorted(samples) for key, samples in found.items()}

    def _seen_before(self, fleet: FleetName) -> dict[Key, float]:
        """Return the counters that were there within the last hour, so that they do not count as new."""
        found: dict[Key, float] = {}
        for metric in (self.traffic.requests, self.traffic.durations):
            selector = self.traffic.selector(metric, self.stack, fleet)
            for series in self.prometheus.query(f"last_over_time({selector}[{SEEN}])"):
                key = self.traffic.key(metric, series["metric"])
                found[key] = max(found.get(key, 0.0), float(series["value"][1]))
        return found

    def _counts(self, totals: Mapping[Key, float], instances: Collection[str] | None) -> Counts:
        """Return totals by route, of all instances or of these."""
        chosen = {key: value for key, value in totals.items() if instances is None or key[1] in instances}
        routes: dict[str, RouteCounts] = {}
        for route in sorted({key[2] for key in chosen}):
            statuses: dict[str, float] = {}
            unanswered: dict[str, float] = {}
            durations: dict[float, float] = {}
            for (metric, _instance, of, *rest), value in chosen.items():
                if of != route:
                    continue
                if metric == self.traffic.durations:
                    bound = float(rest[0])
                    durations[bound] = durations.get(bound, 0.0) + value
                elif rest[1] == "answered":
                    statuses[rest[0]] = statuses.get(rest[0], 0.0) + value
                else:
                    unanswered[rest[1]] = unanswered.get(rest[1], 0.0) + value
            routes[route] = RouteCounts(statuses=statuses, unanswered=unanswered, durations=durations)
        return routes


def _values(series: Series) -> Iterator[Sample]:
    for time, value in series["values"]:
        if math.isfinite(number := float(value)):
            yield float(time), number


def _growth(samples: Iterable[Sample], first: float) -> float:
    """Return by how much a counter grew; one that began after the others began at 0."""
    grown, before = 0.0, None
    for time, value in samples:
        if before is None:
            grown += value if time > first + STARTED_S else 0.0
        else:
            grown += value - before if value >= before else value
        before = value
    return grown
