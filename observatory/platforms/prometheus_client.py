"""Queries of a stack's Prometheus; they survive its restart."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from observatory.delivery.environment import MetricsUnavailableError
from observatory.security.client_certificate import ClientCertificate

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS = 2.0
ATTEMPTS, PAUSE_SECONDS = 3, 0.5  # within one evaluation of a gate

Series: TypeAlias = dict[str, Any]


class QueryRefusedError(MetricsUnavailableError):
    """Prometheus answers, and has no result: it refuses the expression, or cannot evaluate it."""


@dataclass(kw_only=True)
class PrometheusClient:
    """A stack's Prometheus.

    Attributes:
        url: of Prometheus.
        client: the certificate that it requires, if any.
    """

    url: str
    client: ClientCertificate | None = None

    def query(self, expression: str, *, at: float | None = None) -> list[Series]:
        """Return the result of an expression, now or at a time in seconds since the epoch.

        Raises:
            MetricsUnavailableError: Prometheus does not answer, or not as expected, in several attempts.
        """
        parameters = {"query": expression, **({} if at is None else {"time": f"{at:.3f}"})}
        for _ in range(ATTEMPTS - 1):
            try:
                return self._result("query", parameters)
            except MetricsUnavailableError:
                time.sleep(PAUSE_SECONDS)
        return self._result("query", parameters)

    def query_range(self, expression: str, *, start: float, end: float, step: float) -> list[Series]:
        """Return the result of an expression over a time, in one attempt.

        Args:
            expression: in PromQL.
            start: in seconds since the epoch.
            end: the same.
            step: seconds between two values.

        Raises:
            QueryRefusedError: Prometheus answers, and has no result.
            MetricsUnavailableError: Prometheus does not answer.
        """
        times = {"start": start, "end": end, "step": step}
        return self._result(
            "query_range", {"query": expression, **{name: f"{value:.3f}" for name, value in times.items()}}
        )

    def alerting_rules(self) -> list[dict[str, Any]]:
        """Return the alerting rules with their state and alerts, as Prometheus' API has them; raises as `query_range`.

        See https://prometheus.io/docs/prometheus/2.53/querying/api/#rules.
        """
        groups = self._answer("rules", {"type": "alert"}, "groups")
        return [rule for group in groups for rule in group["rules"]]

    def label_values(self, label: str, *, stack: str) -> list[str]:
        """Return the values that a label has in the newest series of a stack; raises as `query_range`."""
        return [str(each) for each in self._answer(f"label/{label}/values", {"match[]": f'{{stack="{stack}"}}'})]

    def now(self) -> float:
        """Return the time of Prometheus' clock; raises as `query`."""
        return float(self.query("vector(time())")[0]["value"][1])

    def _result(self, what: str, parameters: dict[str, str]) -> list[Series]:
        return self._answer(what, parameters, "result")

    def _answer(self, what: str, parameters: dict[str, str], key: str | None = None) -> list[Any]:
        """Return the list that an answer has, or that its object has by this key."""
        import httpx  # noqa: PLC0415 - only where it is used

        try:
            answer = self._http.get(f"/api/v1/{what}", params=parameters)
        except (httpx.HTTPError, OSError) as error:
            raise MetricsUnavailableError(f"Prometheus at {self.url} does not answer: {error}") from error
        try:
            found = answer.json()
            if answer.is_success:
                return list(found["data"][key] if key else found["data"])
            problem = f"{found['errorType']}: {found['error']}"
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{answer.status_code} {answer.text[:200].strip()}"
            raise MetricsUnavailableError(f"Prometheus at {self.url} answers: {problem}") from error
        raise QueryRefusedError(f"Prometheus at {self.url} answers: {problem}")

    @cached_property
    def _http(self) -> httpx.Client:
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
