"""A fleet's measurements from Prometheus, for gates.

The window is four scrapes: short enough that a bad version is seen within seconds, long enough that one scrape that
failed leaves no gap. Synthetic requests go through the preview listener, so a fleet without traffic can be judged too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from observatory.delivery.protocols import MetricsUnavailableError, Sample
from observatory.delivery.rollout import FleetName

WINDOW = "20s"
ANSWER_SECONDS = 2.0
PROBE_SECONDS = 2.0  # over which synthetic requests are spread

# `%s` stands for the matchers of one fleet of one stack. A ratio without traffic has no value.
WRITES = f"sum(increase(storage_writes_total{{%s}}[{WINDOW}]))"
FAILED_WRITES = f'sum(increase(storage_writes_total{{%s,status="error"}}[{WINDOW}]))'
P95 = f"histogram_quantile(0.95, sum by (le) (rate(storage_http_request_duration_seconds_bucket{{%s}}[{WINDOW}]))) >= 0"
FULLEST_BUFFER = "max(max without (table) (storage_buffer_size{%s}) / storage_buffer_capacity{%s})"
FULLEST_POOL = "max(storage_pool_in_use{%s} / storage_pool_capacity{%s})"
STARTED = "process_start_time_seconds{%s}"
ALERTS = 'ALERTS{%s,alertstate="firing",rollback="true"}'
# An outage of the database fails every write and makes every instance unready, which is not the version's fault. The
# first window covers `WINDOW` and the time that alerts go on firing, the second that of StorageErrorBudgetFastBurn.
DATABASE_DOWN = 'min_over_time(pg_up{stack="%s"}[1m]) == 0'
OF_THE_BUDGET = "StorageErrorBudgetFastBurn"
DATABASE_WAS_DOWN = 'min_over_time(pg_up{stack="%s"}[6m]) == 0'


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The expressions that count a fleet's requests, and those of them that were answered by 5xx."""

    requests: str
    failed: str


# On AWS the balancer's own metrics come minutes late, so requests are counted where they arrive. What the balancer
# answers itself, since no instance does, is not seen there; then too few requests arrive, which never passes a gate.
TRAFFIC = {
    "local": Traffic(
        requests=f"sum(increase(haproxy_backend_http_responses_total{{%s}}[{WINDOW}]))",
        failed=f'sum(increase(haproxy_backend_http_responses_total{{%s,code="5xx"}}[{WINDOW}]))',
    ),
    "aws": Traffic(
        requests=f'sum(increase(storage_http_requests_total{{%s,route=~"/v1/.+"}}[{WINDOW}]))',
        failed=f'sum(increase(storage_http_requests_total{{%s,route=~"/v1/.+",status=~"5.."}}[{WINDOW}]))',
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
    _started: dict[tuple[str, str], float] = field(default_factory=dict, init=False, repr=False)

    def sample(self, fleet: FleetName) -> Sample:
        """Return what is known of a fleet now.

        Raises:
            MetricsUnavailableError: Prometheus does not answer, or sees no instance of the fleet.
        """
        started, alerts, database_down = self._ask(STARTED, fleet), self._alerts(fleet), self._is_true(DATABASE_DOWN)
        if not (started or alerts or database_down):
            raise MetricsUnavailableError(f"Prometheus at {self.url} sees no instance of {fleet}")
        return Sample(
            requests=self._number(self.traffic.requests, fleet) or 0.0,
            error_ratio=max(
                self._ratio(self.traffic.failed, self.traffic.requests, fleet),
                self._ratio(FAILED_WRITES, WRITES, fleet),
            ),
            p95_s=self._number(P95, fleet),
            saturation=max(self._number(FULLEST_BUFFER, fleet) or 0.0, self._number(FULLEST_POOL, fleet) or 0.0),
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

    def _alerts(self, fleet: FleetName) -> tuple[str, ...]:
        """Return the firing alerts that roll a fleet back; errors of an outage of the database are not its own."""
        firing = {each["metric"]["alertname"] for each in self._ask(ALERTS, fleet)}
        if OF_THE_BUDGET in firing and self._is_true(DATABASE_WAS_DOWN):
            firing.remove(OF_THE_BUDGET)
        return tuple(sorted(firing))

    def _is_true(self, condition: str) -> bool:
        """Tell whether a condition on the stack holds."""
        return bool(self._query(condition.replace("%s", self.stack)))

    def _restarts(self, fleet: FleetName, started: list[dict[str, Any]]) -> int:
        """Count the instances that started again since they were first sampled."""
        restarts = 0
        for series in started:
            key, now = (fleet, series["metric"]["instance"]), float(series["value"][1])
            restarts += self._started.setdefault(key, now) != now
        return restarts

    def _ratio(self, part: str, whole: str, fleet: FleetName) -> float:
        total = self._number(whole, fleet) or 0.0
        return (self._number(part, fleet) or 0.0) / total if total else 0.0

    def _number(self, expression: str, fleet: FleetName) -> float | None:
        found = self._ask(expression, fleet)
        return float(found[0]["value"][1]) if found else None

    def _ask(self, expression: str, fleet: FleetName) -> list[dict[str, Any]]:
        """Return the vector that an expression has now."""
        return self._query(expression.replace("%s", f'stack="{self.stack}",fleet="{fleet}"'))

    def _query(self, query: str) -> list[dict[str, Any]]:
        import httpx  # noqa: PLC0415 - only where it is used

        try:
            answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=ANSWER_SECONDS)
            found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise MetricsUnavailableError(f"Prometheus at {self.url} does not answer: {error}") from error
        return found
