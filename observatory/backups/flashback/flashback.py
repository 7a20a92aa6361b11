"""The difference between a table of an earlier state and the live one, and the restore of its missing rows.

    result = compare_table(clone, live, request, ...)

`comparison` finds the difference, `restoring` inserts, `observatory.backups.flashback.clones` makes the earlier state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg

from observatory.backups.flashback.comparison import Comparison, Found, Sessions
from observatory.backups.flashback.condition import read_condition
from observatory.backups.flashback.difference import Difference, Kind, Request
from observatory.backups.flashback.restoring import Restorer
from observatory.backups.flashback.rows import READ_ONLY, SETTINGS, Rows
from observatory.backups.flashback.tables import check_restorable, live_table, read_table
from observatory.database.advisory_locks import FLASHBACK_LOCK, MIGRATION_LOCK, session_lock
from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors

EXAMPLES = 20  # differing rows of each kind that a result has
PURPOSE = "flashback"
_REMEDY = "Nothing was restored. Correct the cause and run again"


OnRange = Callable[[int, int, int], None]  # compared ranges, all ranges, and missing rows so far


def check_request(live: str, request: Request) -> None:
    """Refuse what the live database alone shows to be wrong, before an earlier state is restored.

    Args:
        live: connection string of the live database.
        request: what is to be compared.

    Raises:
        ConditionError: the condition is no expression that only reads the row, or does not fit the table.
        TableRefusedError: the table is missing, or cannot be compared or restored.
        DatabaseError: the connection failed.
    """
    condition = read_condition(request.where) if request.where is not None else None
    with (
        translate_errors(f"check of {request.table}", remedy=_REMEDY),
        connect(live, purpose=PURPOSE, settings=READ_ONLY) as session,
    ):
        table = live_table(session, request.table)
        if condition:
            condition.check_reads_only(session)
            condition.check_fits(session, table, where=request.table)


def compare_table(
    clone: str,
    live: str,
    request: Request,
    *,
    free_bytes: Callable[[], int],
    on_range: OnRange = lambda _done, _all, _missing: None,
) -> Difference:
    """Compare a table of an earlier state with the live one, and insert its missing rows if that is requested.

    Every later write is kept: a row that exists is never changed. Reads of a chunk are one statement each, and the
    insert is one transaction.

    Args:
        clone: connection string of the earlier state; it is only read.
        live: a direct connection (no transaction pooler) of the role that owns the schema.
        request: what is compared.
        free_bytes: returns how much of the live database's disk is free.
        on_range: called after each range of a hypertable.

    Raises:
        ConditionError: the condition is no expression that only reads the row, or does not fit the table.
        TableRefusedError: the table is missing, or cannot be compared or restored; nothing was changed.
        LockHeldError: a migration or another restore runs in the database.
        NotRestoredError: PostgreSQL refused a row, and none was inserted.
        NotRefreshedError: the rows are inserted, an aggregate is not refreshed.
        DatabaseError: a connection failed, or PostgreSQL refused a query.
    """
    condition = read_condition(request.where) if request.where is not None else None
    with translate_errors(f"comparison of {request.table}", remedy=_REMEDY), _open(clone, live) as sessions:
        table = read_table(sessions.clone, sessions.live, request.table, at=request.at)
        if condition:
            condition.check_reads_only(sessions.live)
            condition.check_fits(sessions.live, table.identifier, where=request.table)
            condition.check_fits(sessions.clone, table.identifier, where=f"{request.table} as of {request.at}")
        comparison = Comparison(Rows(table, condition), sessions)
        if not request.restore:
            return _compared(comparison, None, on_range)
        check_restorable(sessions.live, table)
        with (
            connect(live, purpose=PURPOSE, settings=SETTINGS) as writer,
            session_lock(writer, MIGRATION_LOCK, wait_s=0),  # no column changes meanwhile
            session_lock(writer, FLASHBACK_LOCK, wait_s=0),
        ):
            restorer = Restorer(comparison.rows, sessions, writer, free_bytes)
            return _compared(comparison, restorer, on_range)


@contextlib.contextmanager
def _open(clone: str, live: str) -> Iterator[Sessions]:
    with contextlib.ExitStack() as stack:

        def session(conninfo: str) -> psycopg.Connection:
            return stack.enter_context(connect(conninfo, purpose=PURPOSE, settings=READ_ONLY))

        yield Sessions(clone=session(clone), clone_lookup=session(clone), live=session(live), live_lookup=session(live))


@dataclass
class _Tally:
    """Counts what was found, and keeps the first of each kind."""

    counts: dict[Kind, int] = field(default_factory=lambda: {"missing": 0, "changed": 0, "added": 0})
    examples: dict[Kind, list[tuple[str, ...]]] = field(
        default_factory=lambda: {"missing": [], "changed": [], "added": []}
    )

    def add(self, found: Found) -> None:
        self.counts[found.kind] += found.number
        kept = self.examples[found.kind]
        kept += [identity for identity, _ in found.identities[: EXAMPLES - len(kept)]]


def _compared(comparison: Comparison, restorer: Restorer | None, on_range: OnRange) -> Difference:
    tally = _Tally()
    kept = comparison.kept_ranges()
    for number, within in enumerate(kept, start=1):
        for found in comparison.compare(within):
            tally.add(found)
            if restorer and found.kind == "missing":
                restorer.stage(found)
        on_range(number, len(kept), tally.counts["missing"])
    table = comparison.rows.table
    return Difference(
        table=str(table),
        key=table.key,
        time=table.time,
        **tally.counts,
        expired=comparison.count_expired(),
        examples=tally.examples,
        restored=restorer.insert() if restorer else None,
    )
