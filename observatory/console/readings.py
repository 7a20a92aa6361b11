"""What the pages show of a stack: results of `observatory.operations`, each kept for some seconds.

A reading that fails has a problem instead of a value, so that a page shows everything else: also where the fault is of
this program, or of an answer that is not as expected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from observatory import operations
from observatory.errors import ObservatoryError
from observatory.operations import Progress, Reporter, Workspace

if TYPE_CHECKING:
    from observatory.backups.receipts import Receipt
    from observatory.database import MigrationList
    from observatory.documents.journal import Entry

LOG = logging.getLogger("observatory.console")
T = TypeVar("T")
QUICK_S, SLOW_S = 3.0, 20.0  # a reading is kept so long: one of files and processes, one that starts a program
SHARE = 0.2  # of the time, at most, for a reading that takes long, as of a long audit; it is kept up to `SLOW_S`


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[T]):
    """One result: `value`, None if it could not be read; `problems`, why not, or what is missing from it."""

    value: T | None
    problems: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Readings:
    """The readings of a stack.

    In `kept`, until when on the monotonic clock each is shown again; `faults` are names and kinds of faults in the log.
    """

    workspace: Workspace
    kept: dict[str, tuple[float, Reading[Any]]] = field(default_factory=dict)
    faults: set[tuple[str, type[Exception]]] = field(default_factory=set)

    def status(self) -> Reading[operations.Status]:
        """Return daemons, fleets, jobs, passwords and certificates."""
        return self._read("status", QUICK_S, lambda _: operations.status(self.workspace))

    def alerts(self) -> Reading[list[operations.AlertRule]]:
        """Return the alerting rules with their alerts."""
        return self._read("alerts", QUICK_S, lambda report: operations.list_alerts(self.workspace, report=report))

    def silences(self) -> Reading[list[operations.Silence]]:
        """Return the silences."""
        return self._read("silences", QUICK_S, lambda _: operations.list_silences(self.workspace))

    def deliveries(self) -> Reading[list[operations.DeliveryReport]]:
        """Return the recorded deployments, oldest first."""
        return self._read("report", QUICK_S, lambda report: operations.report_deliveries(self.workspace, report=report))

    def audit(self) -> Reading[list[Entry]]:
        """Return the entries of the audit, oldest first."""
        return self._read("audit", QUICK_S, lambda report: operations.list_audit(self.workspace, report=report))

    def backups(self) -> Reading[list[operations.Backup]]:
        """Return the finished backups, oldest first."""
        return self._read("backups", SLOW_S, lambda report: operations.list_backups(self.workspace, report=report))

    def drills(self) -> Reading[list[Receipt]]:
        """Return the receipts of restore drills, oldest first."""
        return self._read("drills", SLOW_S, lambda _: operations.list_receipts(self.workspace))

    def migrations(self) -> Reading[MigrationList]:
        """Return the applied and pending migrations."""
        return self._read("migrations", SLOW_S, lambda _: operations.list_migrations(self.workspace))

    def _read(self, name: str, seconds: float, work: Callable[[Reporter], T]) -> Reading[T]:
        begun = time.monotonic()
        self.kept = {each: (until, kept) for each, (until, kept) in self.kept.items() if begun < until}
        if name not in self.kept:
            found = self._reading(name, work)
            ended = time.monotonic()
            until = ended + max(seconds, min(SLOW_S, (ended - begun) / SHARE))
            self.kept[name] = until, found
        return self.kept[name][1]

    def _reading(self, name: str, work: Callable[[Reporter], T]) -> Reading[T]:
        warnings: list[str] = []

        def keep(progress: Progress) -> None:
            if progress.phase is operations.Phase.WARNED:
                warnings.append(progress.task)

        try:
            return Reading(value=work(keep), problems=tuple(warnings))
        except ObservatoryError as error:
            return Reading(value=None, problems=(str(error),))
        except Exception as error:
            if (name, type(error)) not in self.faults:  # a page is read every few seconds
                self.faults.add((name, type(error)))
                LOG.exception("%s cannot be read", name)
            return Reading(value=None, problems=(f"{name} cannot be read: {error!r}",))
