"""Comparison of a restored database with the values that were recorded of the live one at the same place in the WAL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import psycopg

from observatory.backups.exact_snapshot import SETTINGS, table_names
from observatory.backups.recording import WORKERS
from observatory.backups.values import Piece, RecordedValues, count_piece
from observatory.database.connection import cancellable, connect
from observatory.interruption.parallel import in_parallel

SHOWN = 5  # differences that a message names


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        pieces: that were compared.
        rows: in them, as recorded.
        differences: each as text; empty where the database is exact.
    """

    pieces: int
    rows: int
    differences: tuple[str, ...]

    def describe(self) -> str:
        """Return the differences as one text."""
        more = f" and {len(self.differences) - SHOWN} more" if len(self.differences) > SHOWN else ""
        return "; ".join(self.differences[:SHOWN]) + more


def compare_values(conninfo: str, values: RecordedValues) -> Comparison:
    """Compare a database, which is at the place of the recorded values, with them.

    Args:
        conninfo: to the restored database, as superuser.
        values: of the live one.

    Raises:
        UnreachableError: the server is unreachable.
    """
    with connect(conninfo, purpose="restore drill", settings=SETTINGS) as connection:
        found = table_names(connection)
    different = [f"{name} is missing" for name in values.tables if name not in found]
    # A chunk is created by a transaction that writes to its hypertable, and none was under way.
    known = {*values.tables, *values.left_out}
    added = [name for name, kind in found.items() if kind == "chunk" and name not in known]
    different += [f"{name} was created after the values were recorded" for name in added]
    pieces = [piece for piece in values.pieces if piece.name in found]
    shares = [pieces[number::WORKERS] for number in range(WORKERS)]
    for differences in in_parallel(partial(_differences, conninfo), shares):
        different += differences
    return Comparison(pieces=len(values.pieces), rows=values.rows, differences=tuple(different))


def _differences(conninfo: str, pieces: Sequence[Piece]) -> list[str]:
    with connect(conninfo, purpose="restore drill", settings=SETTINGS) as connection:
        return [found for piece in pieces if (found := _difference(connection, piece))]


def _difference(connection: psycopg.Connection, piece: Piece) -> str:
    """Return how a piece differs; empty where it is exact."""
    place = f"{piece.name}, blocks {piece.first} to {'the end' if piece.end is None else piece.end - 1}"
    try:
        with cancellable(connection):
            rows, checksum = count_piece(connection, piece.table, piece.first, piece.end)
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:  # a damaged page
        return f"{place}: {str(error).splitlines()[0]}"
    if rows != piece.rows:
        return f"{place}: {rows} rows, recorded were {piece.rows}"
    return "" if checksum == piece.checksum else f"{place}: the {rows} rows have other values"
