"""Compares a table of an earlier state with the live one: missing, changed and added rows, one chunk after the other.

Both databases return their rows in the same order, so that only the differences are kept, and of those a batch at a
time. No transaction lasts longer than the reading of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import psycopg

from observatory.backups.flashback.difference import Kind
from observatory.backups.flashback.errors import TableRefusedError
from observatory.backups.flashback.rows import Identity, Range, Rows, ranges

BATCH = 1000  # rows that are looked up, or copied, by one statement
MOST_OF_ONE_TIME = 1_000_000  # missing rows of one instant that are kept in memory

_Pair = tuple[Identity, str | None, str | None]  # the contents in the earlier and in the live database


@dataclass(frozen=True, kw_only=True)
class Found:
    """Rows that differ, of one kind; `identities` has each with the number of such rows."""

    kind: Kind
    within: Range
    identities: list[tuple[Identity, int]]

    @property
    def number(self) -> int:
        """The number of rows."""
        return sum(number for _, number in self.identities)


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Two sessions of each database: one has a query open while the other looks up rows."""

    clone: psycopg.Connection
    clone_lookup: psycopg.Connection
    live: psycopg.Connection
    live_lookup: psycopg.Connection


@dataclass(frozen=True)
class Comparison:
    """The comparison of one table."""

    rows: Rows
    sessions: Sessions

    def kept_ranges(self) -> list[Range]:
        """Return the ranges whose rows are compared."""
        return [each for each in ranges(self.rows.table) if not self._expired(each)]

    def count_expired(self) -> int:
        """Return the number of earlier rows that are older than the table's rows are kept."""
        found = [each for each in ranges(self.rows.table) if self._expired(each)]
        return sum(self.rows.count(self.sessions.clone, each) for each in found)

    def compare(self, within: Range) -> Iterator[Found]:
        """Yield the differences of one range, in batches."""
        pairs = _merge(self.rows.read(self.sessions.clone, within), self.rows.read(self.sessions.live, within))
        if self.rows.table.key:
            single = self._keyed(pairs, within)
        elif self.rows.table.time:
            single = self._beside_changes(_by_time(pairs, str(self.rows.table)), within)
        else:
            single = _as_multisets(pairs)
        yield from _batches(single, within)

    def _expired(self, within: Range) -> bool:
        expired, end = self.rows.table.expired, within[1]
        return expired is not None and end is not None and end <= expired

    def _keyed(self, pairs: Iterator[_Pair], within: Range) -> Iterator[tuple[Kind, Identity, int]]:
        """Yield the rows that differ. Where there is a condition, the other row may exist without fulfilling it."""
        waiting: dict[Kind, list[Identity]] = {"missing": [], "added": []}
        lookups = {"missing": self.sessions.live_lookup, "added": self.sessions.clone_lookup}

        def settle(kind: Kind) -> Iterator[tuple[Kind, Identity, int]]:
            found = waiting[kind]
            existing = self.rows.existing(lookups[kind], within, found) if self.rows.condition and found else set()
            for identity in found:
                yield ("changed" if identity in existing else kind), identity, 1
            found.clear()

        for identity, earlier, live in pairs:
            if earlier is not None and live is not None:
                yield "changed", identity, 1
                continue
            kind: Kind = "added" if earlier is None else "missing"
            waiting[kind].append(identity)
            if len(waiting[kind]) >= BATCH:
                yield from settle(kind)
        yield from settle("missing")
        yield from settle("added")

    def _beside_changes(
        self, single: Iterator[tuple[Kind, Identity, int]], within: Range
    ) -> Iterator[tuple[Kind, Identity, int]]:
        """Yield rows without a key; those count as changed whose place has a row that the condition leaves out."""
        while batch := list(islice(single, BATCH)):
            times = [identity[0] for kind, identity, _ in batch if kind == "missing"]
            taken = self._taken(within, times) if self.rows.condition and times else set()
            for kind, identity, number in batch:
                yield ("changed" if kind == "missing" and identity[0] in taken else kind), identity, number

    def _taken(self, within: Range, times: list[str]) -> set[str]:
        """Return the instants at which the live table has a row that the earlier one lacks, whatever the condition."""
        lookups = (self.sessions.clone_lookup, self.sessions.live_lookup)
        pairs = _merge(*(self.rows.read_at(each, within, times) for each in lookups))
        return {identity[0] for identity, earlier, live in pairs if int(live or 0) > int(earlier or 0)}


def _merge(clone: Iterator[tuple[Identity, str]], live: Iterator[tuple[Identity, str]]) -> Iterator[_Pair]:
    """Yield what differs between two streams in the order of their identities."""
    end: tuple[None, None] = (None, None)
    before, now = next(clone, end), next(live, end)
    while before[0] is not None or now[0] is not None:
        if now[0] is None or (before[0] is not None and before[0] < now[0]):
            assert before[0] is not None  # noqa: S101 - one of them is there
            yield before[0], before[1], None
            before = next(clone, end)
        elif before[0] is None or now[0] < before[0]:
            yield now[0], None, now[1]
            now = next(live, end)
        else:
            if before[1] != now[1]:
                yield now[0], before[1], now[1]
            before, now = next(clone, end), next(live, end)


def _as_multisets(pairs: Iterator[_Pair]) -> Iterator[tuple[Kind, Identity, int]]:
    for identity, earlier, live in pairs:
        number = int(earlier or 0) - int(live or 0)
        yield ("missing" if number > 0 else "added"), identity, abs(number)


def _by_time(pairs: Iterator[_Pair], table: str) -> Iterator[tuple[Kind, Identity, int]]:
    """Yield the rows of a table without a key that differ.

    A row counts as changed where the live table has another row of the same instant in its place.
    """
    for _, group in groupby(pairs, key=lambda pair: pair[0][0]):
        found: dict[Kind, list[tuple[Identity, int]]] = {"missing": [], "added": []}
        for place, (kind, identity, number) in enumerate(_as_multisets(group)):
            found[kind].append((identity, number))
            if place > MOST_OF_ONE_TIME:
                raise TableRefusedError(
                    f"more than {MOST_OF_ONE_TIME} rows of the instant {identity[0]} differ in {table}",
                    remedy="Compare a part of them with --where.",
                )
        replaced = sum(number for _, number in found["missing"])
        for identity, number in found["missing"]:
            yield ("changed" if found["added"] else "missing"), identity, number
        for identity, number in found["added"]:
            rest = max(0, number - replaced)
            replaced = max(0, replaced - number)
            if rest:
                yield "added", identity, rest


def _batches(single: Iterator[tuple[Kind, Identity, int]], within: Range) -> Iterator[Found]:
    batches: dict[Kind, list[tuple[Identity, int]]] = {"missing": [], "changed": [], "added": []}
    for kind, identity, number in single:
        batches[kind].append((identity, number))
        if len(batches[kind]) >= BATCH:
            yield Found(kind=kind, within=within, identities=batches[kind])
            batches[kind] = []
    for kind, rest in batches.items():
        if rest:
            yield Found(kind=kind, within=within, identities=rest)
