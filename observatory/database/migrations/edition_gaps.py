"""Features that the server's edition of TimescaleDB lacks, as migrations recorded them."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors

_READ = "SELECT feature, replaced_by, consequence FROM observatory.edition_gaps ORDER BY feature"


@dataclass(frozen=True, kw_only=True, slots=True)
class EditionGap:
    """A feature that another edition has.

    Attributes:
        feature: its name, `compression`.
        replaced_by: the replacement in this edition; None: there is none.
        consequence: the effect for the operator.
    """

    feature: str
    replaced_by: str | None
    consequence: str


def edition_gaps(conninfo: str) -> tuple[EditionGap, ...]:
    """Return the gaps by feature; none before the migration that records them.

    Raises:
        StatementFailedError: the role may not read them.
        UnreachableError: the connection failed or broke.
    """
    with connect(conninfo, purpose="edition gaps") as connection, translate_errors(describe(conninfo)):
        row = connection.execute("SELECT to_regclass('observatory.edition_gaps') IS NOT NULL").fetchone()
        if not (row and row[0]):
            return ()
        with connection.cursor(row_factory=class_row(EditionGap)) as cursor:
            return tuple(cursor.execute(_READ).fetchall())
