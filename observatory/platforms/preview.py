"""Exercising one fleet through the preview listener, where a header chooses the fleet, whatever its traffic weight."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError
from observatory.documents.rollout import other
from observatory.platforms.live_comparison import judged
from observatory.platforms.place import FLEET_HEADER, Place
from observatory.platforms.smoke import Run, exercise
from observatory.settings import FleetName
from observatory.waiting import poll

if TYPE_CHECKING:
    from observatory.database.verification_rows import MarkedRows

READY_SECONDS = 10.0  # until the balancer reports a fleet that is ready: it checks each second
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The preview listener of a stack.

    Attributes:
        url: of the listener.
        marked_rows: yields rows that are removed at the end of the block; None where there is no database.
    """

    url: str
    marked_rows: Callable[[], AbstractContextManager[MarkedRows]]

    def verify(self, fleet: FleetName, version: str, *, instance: Place | None = None) -> tuple[str, ...]:
        """Exercise a fleet, or one instance of it; the rows that this writes are removed.

        Returns:
            What was not checked, and why.

        Raises:
            HostsError: a check of the smoke suite failed.
            UnjudgedError: so it did through the other fleet, or the other instances.
        """
        live = self.place(fleet if instance else other(fleet))
        return judged(
            lambda: self.exercise(fleet, version, instance=instance),
            live,
            self.marked_rows,
            tested=f"{fleet} {version}",
        )

    def exercise(self, fleet: FleetName, version: str, *, instance: Place | None = None) -> tuple[str, ...]:
        """Exercise a fleet as `verify` does, without a comparison where a check fails.

        Raises:
            HostsError: a check of the smoke suite failed.
            DatabaseError: the database does not answer.
        """
        beside = self.place(other(fleet))
        with self.marked_rows() as rows:
            return exercise(
                instance or self.place(fleet),
                Run.with_database(rows),
                version=version,
                beside=beside if beside.is_ready() else None,
            )

    def wait_ready(self, fleet: FleetName) -> None:
        """Return when the balancer reports a ready instance of the fleet.

        Raises:
            HostsError: it reports none for `READY_SECONDS`.
        """
        found = poll(self.place(fleet).is_ready, until=bool, timeout_s=READY_SECONDS, interval_s=POLL_SECONDS)
        if not found:
            raise HostsError(
                f"{fleet} is installed, but the balancer reported no ready instance of it within {READY_SECONDS:.0f} s"
            )

    def place(self, fleet: FleetName) -> Place:
        """Return where requests to a fleet go."""
        return Place(name=fleet, url=self.url, headers={FLEET_HEADER: fleet})
