"""Measurements of a fleet, or of some of its instances, from Prometheus, for gates.

The window is four scrapes: short enough that a bad version is seen within seconds, long enough that one scrape that
failed leaves no gap. It never reaches back beyond the start of the youngest instance, so that what an instance answered
before an update is not the new version's. Synthetic requests go through the preview listener, so a fleet without
traffic can be judged too.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from string import Template
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import MetricsUnavailableError, Sample
from observatory.settings import FleetName

if TYPE_CHECKING:
    import httpx

WINDOW_S = 20
ANSWER_SECONDS = 2.0
PROBE_SECONDS = 2.0  # over which synthetic requests are spread

# `$answers` stands for HAProxy's counter and `$balanced` for its matchers, `$served` for the matchers of the
# service's own metrics, `$fleet` for those of the whole fleet. A ratio without traffic has no value.
WRITES = "sum(increase(storage_writes_total{$served}[$window]))"
FAILED_WRITES = 'sum(increase(storage_writes_total{$served,status="error"}[$window]))'
P95 = (
    "histogram_quantile(0.95, sum by (le) (rate(storage_http_request_duration_seconds_bucket{$served}[$window]))) >= 0"
)
FULLEST_BUFFER = "max(max without (table) (storage_buffer_size{$served}) / storage_buffer_capacity{$served})"
FULLEST_POOL = "max(storage_pool_in_use{$served} / storage_pool_capacity{$served})"
STARTED = "process_start_time_seconds{$served} * on (instance) group_left (version) storage_service_info{$served}"
ALERTS = 'ALERTS{$fleet,alertstate="firing",rollback="true"}'
# An outage of the database fails every write and makes every instance unready, which is not the version's fault. The
# first window covers the sample's and the time that alerts go on firing, the second StorageErrorBudgetFastBurn's own.
DATABASE_DOWN = 'min_over_time(pg_up{stack="$stack"}[1m]) == 0'
OF_THE_BUDGET = "StorageErrorBudgetFastBurn"
DATABASE_WAS_DOWN = 'min_over_time(pg_up{stack="$stack"}[6m]) == 0'
# When each alert began, in seconds since the epoch.
ALERTS_BEGAN = 'ALERTS_FOR_STATE{$fleet,rollback="true"}'


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """A fleet of a stack, or some of its instances, as expressions name them; `window` is a range such as `20s`."""

    stack: str
    fleet: FleetName
    instances: tuple[str, ...] | None
    window: str = f"{WINDOW_S}s"

    def fill(self, expression: str) -> str:
        """Return an expression about what is chosen."""
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
    """The expressions that count a fleet's requests, and those of them that were answered by 5xx."""

    requests: str
    failed: str


# On AWS the balancer's own metrics come minutes late, so requests are counted where they arrive. What the balancer
# answers itself, since no instance does, is not seen there; then too few requests arrive, which never passes a gate.
TRAFFIC = {
    "local": Traffic(
        requests="sum(increase($answers{$balanced}[$window]))",
        failed='sum(increase($answers{$balanced,code="5xx"}[$window]))',
    ),
    "aws": Traffic(
        requests='sum(increase(storage_http_requests_total{$served,route=~"/v1/.+"}[$window]))',
        failed='sum(increase(storage_http_requests_total{$served,route=~"/v1/.+",status=~"5.."}[$window]))',
    ),
}


@dataclass(kw_only=True)
class PrometheusMetrics:
    """Samples of the fleets of one stack.

    Attributes:
        url: of Prometheus.
        stack: whose series these are.
        traffic: how its requests are counted.
        preview_url: the listener where a header chooses the fleet.
        api_key: for synthetic requests.
    """

    url: str
    stack: str
    traffic: Traffic
    preview_url: str
    api_key: str = field(repr=False)
    _started: dict[tuple[str, ...], float] = field(default_factory=dict, init=False, repr=False)

    def sample(
        self, fleet: FleetName, instances: Collection[str] | None = None, *, since: float | None = None
    ) -> Sample:
        """Return what is known now of a fleet, or of these of its instances; nothing from before `since` counts.

        Raises:
            MetricsUnavailableError: Prometheus does not answer, or does not see the instances.
        """
        named = None if instances is None else tuple(instances)
        chosen = _Chosen(stack=self.stack, fleet=fleet, instances=named)
        started = self._ask(STARTED, chosen)
        alerts = self._alerts(chosen, since)
        database_down = self._is_true(DATABASE_DOWN, chosen)
        missing = len(started) < (1 if named is None else len(named))
        if missing and not (alerts or database_down):
            missed = "no instance" if named is None else f"{len(started)} of {', '.join(named)}"
            raise MetricsUnavailableError(f"Prometheus at {self.url} sees {missed} of {fleet}")
        chosen = replace(chosen, window=_window(started, since))
        return Sample(
            requests=self._number(self.traffic.requests, chosen) or 0.0,
            error_ratio=max(
                self._ratio(self.traffic.failed, self.traffic.requests, chosen),
                self._ratio(FAILED_WRITES, WRITES, chosen),
            ),
            p95_s=self._number(P95, chosen),
            saturation=max(self._number(FULLEST_BUFFER, chosen) or 0.0, self._number(FULLEST_POOL, chosen) or 0.0),
            restarts=self._restarts(fleet, started),
            alerts=alerts,
            database_down=database_down,
        )

    def probe(self, fleet: FleetName, requests: int) -> None:
        """Read a few traces from a fleet, `requests` times; what it answers is seen by the next sample."""
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.api_key}", "X-Observatory-Fleet": fleet}
        with httpx.Client(base_url=self.preview_url, headers=headers, timeout=ANSWER_SECONDS) as client:
            for _ in range(requests):
                try:
                    client.get("/v1/traces", params={"limit": 1})
                except httpx.HTTPError:
                    return  # the sample tells
                time.sleep(PROBE_SECONDS / requests)

    def _alerts(self, chosen: _Chosen, since: float | None) -> tuple[str, ...]:
        """Return the firing alerts that roll a fleet back; errors of an outage of the database are not its own."""
        firing = {each["metric"]["alertname"] for each in self._ask(ALERTS, chosen)}
        if firing and since is not None:
            began = self._ask(ALERTS_BEGAN, chosen)
            firing &= {each["metric"]["alertname"] for each in began if float(each["value"][1]) >= since}
        if OF_THE_BUDGET in firing and self._is_true(DATABASE_WAS_DOWN, chosen):
            firing.remove(OF_THE_BUDGET)
        return tuple(sorted(firing))

    def _is_true(self, condition: str, chosen: _Chosen) -> bool:
        """Tell whether a condition holds."""
        return bool(self._ask(condition, chosen))

    def _restarts(self, fleet: FleetName, started: list[dict[str, Any]]) -> int:
        """Count the instances that started again since they were first sampled with their present version."""
        restarts = 0
        for series in started:
            metric, now = series["metric"], float(series["value"][1])
            key = (fleet, metric["instance"], metric["version"])
            restarts += self._started.setdefault(key, now) != now
        return restarts

    def _ratio(self, part: str, whole: str, chosen: _Chosen) -> float:
        total = self._number(whole, chosen) or 0.0
        return (self._number(part, chosen) or 0.0) / total if total else 0.0

    def _number(self, expression: str, chosen: _Chosen) -> float | None:
        found = self._ask(expression, chosen)
        return float(found[0]["value"][1]) if found else None

    @cached_property
    def _client(self) -> httpx.Client:
        """Return one client for all looks: a new one takes longer to make than Prometheus takes to answer.

        It keeps no connection, so there is none to close, and none that a restart of Prometheus has made stale.
        """
        import httpx  # noqa: PLC0415 - only where it is used

        return httpx.Client(base_url=self.url, timeout=ANSWER_SECONDS, limits=httpx.Limits(max_keepalive_connections=0))

    def _ask(self, expression: str, chosen: _Chosen) -> list[dict[str, Any]]:
        """Return the vector that an expression has now."""
        import httpx  # noqa: PLC0415 - only where it is used

        query = chosen.fill(expression)
        try:
            answer = self._client.get("/api/v1/query", params={"query": query})
            found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise MetricsUnavailableError(f"Prometheus at {self.url} does not answer: {error}") from error
        return found


def _window(started: list[dict[str, Any]], since: float | None) -> str:
    """Return the range to look at: never back beyond the youngest instance's start, nor beyond `since`.

    What waits for an installed fleet asks it through the balancer, and gets 503 until it is ready.
    """
    begun = [float(series["value"][1]) for series in started]
    age = min((time.time() - each for each in (*begun, *([since] if since else []))), default=float(WINDOW_S))
    return f"{max(1, min(WINDOW_S, int(age)))}s"
