"""Exercising a fleet apart from its share of the traffic, through the listener where a header chooses the fleet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError
from observatory.platforms.smoke import exercise
from observatory.settings import FleetName

if TYPE_CHECKING:
    import httpx

SEEN_SECONDS = 10.0  # for the balancer to see a fleet that is ready: it looks each second


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The preview listener of a stack.

    Attributes:
        url: of the listener.
        api_key: that may read and write.
        marked: gives the id of rows that are removed at the end of the block.
    """

    url: str
    api_key: str = field(repr=False)
    marked: Callable[[], AbstractContextManager[str]]

    def verify(self, fleet: FleetName, version: str) -> None:
        """Exercise a fleet; what it wrote is removed again.

        Raises:
            HostsError: another version answers, a write was refused, or a trace did not come back.
        """
        with self.marked() as run, self._client(fleet) as client:
            exercise(client, run, who=fleet, version=version)

    def wait_seen(self, fleet: FleetName) -> None:
        """Return when the balancer sees an instance of the fleet that is ready.

        Raises:
            HostsError: it sees none for `SEEN_SECONDS`.
        """
        import httpx  # noqa: PLC0415 - only where it is used

        deadline = time.monotonic() + SEEN_SECONDS
        with self._client(fleet) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/health/ready").status_code == HTTPStatus.OK:
                        return
                time.sleep(0.1)
        raise HostsError(f"{fleet} is installed, and the balancer sees no ready instance of it")

    def _client(self, fleet: FleetName) -> httpx.Client:
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.api_key}", "X-Observatory-Fleet": fleet}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10)
