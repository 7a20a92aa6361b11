"""Where requests of verifications go: a fleet behind the preview listener, or one instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

VERSION_HEADER = "X-Observatory-Version"
FLEET_HEADER = "X-Observatory-Fleet"


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
        """Return a client with an API key and a limit in seconds for each request."""
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {**self.headers, "Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
