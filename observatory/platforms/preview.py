"""Exercising one fleet through the preview listener, where a header chooses the fleet, whatever its traffic weight."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError
from observatory.platforms.smoke import exercise
from observatory.settings import FleetName
from observatory.waiting import poll

if TYPE_CHECKING:
    import httpx

READY_SECONDS = 10.0  # until the balancer reports a fleet that is ready: it checks each second
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The preview listener of a stack.

    Attributes:
        url: of the listener.
        api_key: may read and write.
        marked_rows: yields the trace id of rows that are removed at the end of the block.
    """

    url: str
    api_key: str = field(repr=False)
    marked_rows: Callable[[], AbstractContextManager[str]]

    def verify(self, fleet: FleetName, version: str) -> None:
        """Exercise a fleet; the rows that this writes are removed.

        Raises:
            HostsError: another version answers, a write was refused, or a trace cannot be read.
        """
        with self.marked_rows() as run, self._client(fleet) as client:
            exercise(client, run, subject=fleet, version=version)

    def wait_ready(self, fleet: FleetName) -> None:
        """Return when the balancer reports a ready instance of the fleet.

        Raises:
            HostsError: it reports none for `READY_SECONDS`.
        """
        import httpx  # noqa: PLC0415 - only where it is used

        def ready() -> bool:
            try:
                return client.get("/health/ready").status_code == HTTPStatus.OK
            except httpx.HTTPError:
                return False

        with self._client(fleet) as client:
            found = poll(ready, until=bool, timeout_s=READY_SECONDS, interval_s=POLL_SECONDS)
        if not found:
            raise HostsError(
                f"{fleet} is installed, but the balancer reported no ready instance of it within {READY_SECONDS:.0f} s"
            )

    def _client(self, fleet: FleetName) -> httpx.Client:
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.api_key}", "X-Observatory-Fleet": fleet}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10)
