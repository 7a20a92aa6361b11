"""Samples of a fleet, or of some of its instances, from Prometheus, for gates.

The window is four scrapes: short enough to detect a bad version within seconds, long enough that one failed scrape
leaves no gap. It never begins before the newest instance started, so that requests before an update do not count.
Synthetic requests go through the preview listener, so that a fleet without traffic can be sampled, too.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from string import Template
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import MetricsUnavailableError, Sample
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import FleetName

if TYPE_CHECKING:
    import httpx

WINDOW_S = 20
ANSWER_SECONDS = 2.0
PROBE_SECONDS = 2.0  # over which synthetic requests are spread

# `$answers` is HAProxy's counter and `$balanced` its matchers, `$served` the matchers of the service's own metrics,
# `$fleet` those of the whole fleet. A ratio without traffic has no value.
WRITES = "sum(increase(storage_writes_total{$served}[$window]))"
FAILED_WRITES = 'sum(increase(storage_writes_total{$served,status="error"}[$window]))'
P95 = (
    "histogram_quantile(0.95, sum by (le) (rate(storage_http_request_duration_seconds_bucket{$served}[$window]))) >= 0"
)
FULLEST_BUFFER = "max(max without (table) (storage_buffer_size{$served}) / storage_buffer_capacity{$served})"
FULLEST_POOL = "max(storage_pool_in_use{$served} / storage_pool_capacity{$served})"
STARTED = "process_start_time_seconds{$served} * on (instance) group_left (version) storage_service_info{$served}"
ALERTS = 'ALERTS{$fleet,alertstate="firing",rollback="true"}'
# A database outage fails every write and makes every instance unready whatever its version. The first window covers
# the sample's window and the time that alerts keep firing, the second that of StorageErrorBudgetFastBurn.
DATABASE_DOWN = 'min_over_time(pg_up{stack="$stack"}[1m]) == 0'
BUDGET_ALERT = "StorageErrorBudgetFastBurn"
DATABASE_WAS_DOWN = 'min_over_time(pg_up{stack="$stack"}[6m]) == 0'
# When each alert began, in seconds since the epoch.
ALERTS_BEGAN = 'ALERTS_FOR_STATE{$fleet,rollback="true"}'


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """A fleet of a stack, or some of its instances, for expressions; `window` is a range such as `20s`."""

    stack: str
    fleet: FleetName
    instances: tuple[str, ...] | None
    window: str = f"{WINDOW_S}s"

    def fill(self, expression: str) -> str:
        """Return an expression with its placeholders replaced for this selection."""
        fleet = f'stack="{self.stack}",fleet="{self.fleet}"'
        balanced, served, level = fleet, fleet, "backend"
        if self.instances is not None:
            named = "|".join(self.instances)
            balanced, served, level = f'{fleet},server=~"{named}"', f'{fleet},instance=~"{named}"', "server"
        return Template(expression).substitute(
            stack=self.stack,
            answers=f"haproxy_{level}_http_responses_total",
            balanced=balanced,
            served=served,
            fleet=fleet,
            window=self.window,
        )


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The expressions that count a fleet's requests, and those that were answered by 5xx."""

    requests: str
    failed: str


HAPROXY_TRAFFIC = Traffic(
    requests="sum(increase($answers{$balanced}[$window]))",
    failed='sum(increase($answers{$balanced,code="5xx"}[$window]))',
)
# The metrics of AWS' balancer are minutes late, so the service's own are used there. They lack the balancer's own
# answers while no instance answers; then too few requests are counted, which never passes a gate.
SERVICE_TRAFFIC = Traffic(
    requests='sum(increase(storage_http_requests_total{$served,route=~"/v1/.+"}[$window]))',
    failed='sum(increase(storage_http_requests_total{$served,route=~"/v1/.+",status=~"5.."}[$window]))',
)


@dataclass(kw_only=True)
class PrometheusMetrics:
    """Samples of the fleets of one stack.

    Attributes:
        url: of Prometheus.
        stack: the label of its series.
        traffic: counts its requests.
        preview_url: the listener where a header chooses the fleet.
        api_key: for synthetic requests.
        client: the certificate that Prometheus requires, if any.
    """

    url: str
    stack: str
    traffic: Traffic
    preview_url: str
    api_key: str = field(repr=False)
    client: ClientCertificate | None = None
    _started: dict[tuple[str, ...], float] = field(default_factory=dict, init=False, repr=False)

    def sample(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, since: float | None = None
    ) -> Sample:
        """Return a sample of a fleet, or of these of its instances; nothing from before `since` counts.

        Raises:
            MetricsUnavailableError: Prometheus does not answer, or has no series of the instances.
        """
        named = None if instances is None else tuple(instances)
        selection = _Selection(stack=self.stack, fleet=fleet, instances=named)
        started = self._query(STARTED, selection)
        alerts = self._alerts(selection, since)
        database_down = self._is_true(DATABASE_DOWN, selection)
        missing = len(started) < (1 if named is None else len(named))
        if missing and not (alerts or database_down):
            seen = "no instance" if named is None else f"{len(started)} of the instances {', '.join(named)}"
            raise MetricsUnavailableError(f"Prometheus at {self.url} has metrics of {seen} of {fleet}")
        selection = replace(selection, window=_window(started, since))
        return Sample(
            requests=self._number(self.traffic.requests, selection) or 0.0,
            error_ratio=max(
                self._ratio(self.traffic.failed, self.traffic.requests, selection),
                self._ratio(FAILED_WRITES, WRITES, selection),
            ),
            p95_s=self._number(P95, selection),
            saturation=max(
                self._number(FULLEST_BUFFER, selection) or 0.0, self._number(FULLEST_POOL, selection) or 0.0
            ),
            restarts=self._restarts(fleet, started),
            alerts=alerts,
            database_down=database_down,
        )

    def probe(self, fleet: FleetName, requests: int) -> None:
        """Read a few traces from a fleet, `requests` times; the next sample counts the answers."""
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.api_key}", "X-Observatory-Fleet": fleet}
        with httpx.Client(base_url=self.preview_url, headers=headers, timeout=ANSWER_SECONDS) as client:
            for _ in range(requests):
                try:
                    client.get("/v1/traces", params={"limit": 1})
                except httpx.HTTPError:
                    return  # the sample reports it
                time.sleep(PROBE_SECONDS / requests)

    def _alerts(self, selection: _Selection, since: float | None) -> tuple[str, ...]:
        """Return the firing alerts that roll a fleet back, without those that a database outage explains."""
        firing = {each["metric"]["alertname"] for each in self._query(ALERTS, selection)}
        if firing and since is not None:
            began = self._query(ALERTS_BEGAN, selection)
            firing &= {each["metric"]["alertname"] for each in began if float(each["value"][1]) >= since}
        if BUDGET_ALERT in firing and self._is_true(DATABASE_WAS_DOWN, selection):
            firing.remove(BUDGET_ALERT)
        return tuple(sorted(firing))

    def _is_true(self, condition: str, selection: _Selection) -> bool:
        """Return whether a condition is true."""
        return bool(self._query(condition, selection))

    def _restarts(self, fleet: FleetName, started: list[dict[str, Any]]) -> int:
        """Count the instances that restarted since they were first sampled with their current version."""
        restarts = 0
        for series in started:
            metric, now = series["metric"], float(series["value"][1])
            key = (fleet, metric["instance"], metric["version"])
            restarts += self._started.setdefault(key, now) != now
        return restarts

    def _ratio(self, part: str, whole: str, selection: _Selection) -> float:
        total = self._number(whole, selection) or 0.0
        return (self._number(part, selection) or 0.0) / total if total else 0.0

    def _number(self, expression: str, selection: _Selection) -> float | None:
        found = self._query(expression, selection)
        return float(found[0]["value"][1]) if found else None

    @cached_property
    def _client(self) -> httpx.Client:
        """Return one client for all queries: creating one takes longer than a query.

        It keeps no connection, so there is none to close, and none that is stale after a restart of Prometheus.
        """
        import httpx  # noqa: PLC0415 - only where it is used

        return httpx.Client(
            base_url=self.url,
            timeout=ANSWER_SECONDS,
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=self.client.context() if self.client else True,
        )

    def _query(self, expression: str, selection: _Selection) -> list[dict[str, Any]]:
        """Return the current vector of an expression."""
        import httpx  # noqa: PLC0415 - only where it is used

        query = selection.fill(expression)
        try:
            answer = self._client.get("/api/v1/query", params={"query": query})
            found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            raise MetricsUnavailableError(f"Prometheus at {self.url} does not answer: {error}") from error
        return found


def _window(started: list[dict[str, Any]], since: float | None) -> str:
    """Return the range of a sample: it begins after the youngest instance started, and after `since`.

    Before that, the wait for an installed fleet gets 503 from the balancer.
    """
    begun = [float(series["value"][1]) for series in started]
    age = min((time.time() - each for each in (*begun, *([since] if since else []))), default=float(WINDOW_S))
    return f"{max(1, min(WINDOW_S, int(age)))}s"
