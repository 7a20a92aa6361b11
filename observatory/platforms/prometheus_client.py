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
                return self._answer(parameters)
            except MetricsUnavailableError:
                time.sleep(PAUSE_SECONDS)
        return self._answer(parameters)

    def now(self) -> float:
        """Return the time of Prometheus' clock; raises as `query`."""
        return float(self.query("vector(time())")[0]["value"][1])

    def _answer(self, parameters: dict[str, str]) -> list[Series]:
        import httpx  # noqa: PLC0415 - only where it is used

        try:
            answer = self._http.get("/api/v1/query", params=parameters)
        except (httpx.HTTPError, OSError) as error:
            raise MetricsUnavailableError(f"Prometheus at {self.url} does not answer: {error}") from error
        try:
            found = answer.json()
            if answer.is_success:
                result: list[Series] = found["data"]["result"]
                return result
            problem = f"{found['errorType']}: {found['error']}"
        except (ValueError, KeyError, TypeError):
            problem = f"{answer.status_code} {answer.text[:200].strip()}"
        raise MetricsUnavailableError(f"Prometheus at {self.url} answers: {problem}")

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
