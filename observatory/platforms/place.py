"""Where requests of verifications go: a fleet behind the preview listener, or one instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

VERSION_HEADER = "X-Observatory-Version"
FLEET_HEADER = "X-Observatory-Fleet"
READY_SECONDS = 10.0  # until an answer about readiness


@dataclass(frozen=True, kw_only=True)
class Place:
    """A fleet behind the preview listener, or an instance.

    Attributes:
        name: for messages.
        url: base of every path.
        headers: that choose the fleet.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def client(self, key: str, *, timeout: float) -> httpx.Client:
        """Return a client with an API key and a limit in seconds for each request and its whole response."""
        import httpx  # noqa: PLC0415 - only where it is used

        from observatory.platforms.timely_transport import TimelyTransport  # noqa: PLC0415 - with httpx

        headers = {**self.headers, "Authorization": f"Bearer {key}"}
        transport = TimelyTransport(timeout)
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False, transport=transport)

    def is_ready(self) -> bool:
        """Return whether it reports that it is ready; behind the preview listener, this very fleet."""
        import httpx  # noqa: PLC0415 - only where it is used

        url = f"{self.url}/health/ready"
        try:
            answer = httpx.get(url, headers=dict(self.headers), timeout=READY_SECONDS, trust_env=False)
        except httpx.HTTPError:
            return False
        wanted = self.headers.get(FLEET_HEADER)
        return answer.status_code == HTTPStatus.OK and wanted in {None, answer.headers.get(FLEET_HEADER)}
