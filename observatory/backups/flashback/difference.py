"""What is compared, and what was found. Holds only the classes, so that their users do not load psycopg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["missing", "changed", "added"]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore did.

    Attributes:
        inserted: number of rows.
        kept: number of missing rows that were not inserted, because a later row has their place: the same key, or the
            same value of another unique column.
        refreshed: names of the aggregates that were refreshed.
    """

    inserted: int
    kept: int
    refreshed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is compared.

    Attributes:
        table: its name, with or without a schema.
        where: a condition that rows of either state fulfil; None for all rows.
        restore: insert the missing rows.
        at: the earlier time, for messages.
    """

    table: str
    where: str | None = None
    restore: bool = False
    at: str = "the earlier time"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How the live table differs from the earlier one.

    Attributes:
        table: its name.
        key: the columns that identify a row; without any, the time and the content do.
        time: the column that a hypertable is partitioned by; None for another table.
        missing: number of rows that the live table lacks.
        changed: number of rows that it has with other values.
        added: number of rows that only it has.
        expired: number of earlier rows that are older than the table's rows are kept; they are not restored.
        examples: identities of the first rows of each kind.
        restored: what was inserted; None if that was not requested.
    """

    table: str
    key: tuple[str, ...]
    time: str | None
    missing: int
    changed: int
    added: int
    expired: int
    examples: dict[Kind, list[tuple[str, ...]]]
    restored: Restored | None = None
