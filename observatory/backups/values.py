"""Recorded values: how many rows the tables had at a place in the WAL, with their checksums.

A restore that ends at that place has the same values, or it is not exact. Owns the records, their files and the query
of one piece of a table. `observatory.backups.recording` makes them, `observatory.backups.comparison` compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observatory.backups.exact_snapshot import qualified
from observatory.nodes import Paths
from observatory.runtime import Sandbox

DIRECTORY = f"{Paths().data}/backup-values"
KEPT = 100  # records: one for each backup

# The rows of some blocks: a restored table has each row where it was. Their order is of no account, their number is: a
# sum finds a row that is there twice. The text of a row has all its values, also those stored outside of the table.
_PIECE = """
    SELECT count(*), coalesce(sum(hashtextextended((observatory_row.*)::text, 0)), 0)::text
    FROM ONLY {table} AS observatory_row WHERE {range}
"""
_FROM, _BELOW = "observatory_row.ctid >= {}::tid", "observatory_row.ctid < {}::tid"


class Piece(BaseModel):
    """The values of a part of a table.

    Attributes:
        table: schema and name of the table.
        first: its first block.
        end: the block after its last one; None: to the end of the table.
        rows: in it.
        checksum: the sum of the hashes of the rows' texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    table: tuple[str, str]
    first: int = Field(ge=0)
    end: int | None
    rows: int
    checksum: str

    @property
    def name(self) -> str:
        """The table's name with its schema, as `RecordedValues.tables` has it."""
        return qualified(*self.table)


class RecordedValues(BaseModel):
    """The values of a database at a place in the WAL.

    Attributes:
        format: of this record.
        name: of its file, and of the restore point that follows its place in the WAL.
        recorded: when the snapshot was taken, by the server's clock.
        database: its name.
        system: the identifier of the database system.
        timeline: of the WAL.
        lsn: every transaction whose rows are counted ends before it.
        tables: kinds of the tables that it had, by name.
        left_out: names of those that were changed past their hypertable in that moment.
        bytes: size of the tables.
        compared_bytes: size of the pieces.
        pieces: what was counted.
        seconds: that the record took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    format: Literal[1] = 1
    name: str
    recorded: datetime
    database: str
    system: str
    timeline: int
    lsn: str
    tables: dict[str, Literal["table", "chunk", "compressed"]]
    left_out: tuple[str, ...]
    bytes: int
    compared_bytes: int
    pieces: tuple[Piece, ...]
    seconds: float

    @property
    def rows(self) -> int:
        """The rows that were counted."""
        return sum(each.rows for each in self.pieces)


@dataclass(frozen=True)
class ValueStore:
    """The records of a stack, in its home."""

    sandbox: Sandbox

    def add(self, values: RecordedValues) -> None:
        """Keep a record, and the newest `KEPT` of the others."""
        self.sandbox.write_file(f"{DIRECTORY}/{values.name}.json", values.model_dump_json())
        for name in self._names()[:-KEPT]:
            self.sandbox.remove_file(f"{DIRECTORY}/{name}.json")

    def all(self) -> list[RecordedValues]:
        """Return the records, oldest first; a damaged file counts as none."""
        return [found for name in self._names() if (found := self._read(name))]

    def last_compared(self) -> Mapping[tuple[str, int], datetime]:
        """Return when each piece was last counted, by table and first block."""
        return {(piece.name, piece.first): each.recorded for each in self.all() for piece in each.pieces}

    def _names(self) -> list[str]:
        return sorted(file.stem for file in self.sandbox.host_path(DIRECTORY).glob("*.json"))

    def _read(self, name: str) -> RecordedValues | None:
        try:
            with self.sandbox.open_read(f"{DIRECTORY}/{name}.json") as file:
                return RecordedValues.model_validate_json(file.read())
        except (FileNotFoundError, ValidationError):
            return None


def count_piece(connection: psycopg.Connection, table: tuple[str, str], first: int, end: int | None) -> tuple[int, str]:
    """Return the number of rows in some blocks of a table, and the sum of their hashes.

    Args:
        connection: with the settings `observatory.backups.exact_snapshot.SETTINGS`.
        table: schema and name.
        first: the first block.
        end: the block after the last one; None: to the end of the table.
    """
    limits = [sql.SQL(_FROM).format(sql.Literal(f"({first},0)"))]
    if end is not None:
        limits.append(sql.SQL(_BELOW).format(sql.Literal(f"({end},0)")))
    query = sql.SQL(_PIECE).format(table=sql.Identifier(*table), range=sql.SQL(" AND ").join(limits))
    [(rows, checksum)] = connection.execute(query)
    return rows, checksum
