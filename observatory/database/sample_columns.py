"""Which tables and columns a sample copies, and what it refuses to copy.

Compares the columns of source and target with the masks before anything is copied: a column without a mask, a mask
that does not fit, and a column that the target requires are all named. No column is copied by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import psycopg
from psycopg import sql

from observatory.database.errors import SampleError
from observatory.database.sample_expressions import PUBLIC, Known, Mask
from observatory.database.sample_masks import (
    DOMAIN,
    NOT_COPIED,
    OMIT,
    RESERVED,
    Table,
    column,
    own_mask,
    product_tables,
)

SETTING = "llm-observatory:sample.masks"
OTHER_DOMAINS = frozenset({"provider", "model", "environment", "span_name", "tag"})  # that known values may be of
SHOWN = 20  # problems of one message

# Ordinary tables; not those of extensions, of PostgreSQL, or of the stack itself.
_COLUMNS = r"""
    SELECT n.nspname || '.' || c.relname, n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
           a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', a.attgenerated <> '' OR a.attidentity <> ''
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND a.attnum > 0 AND NOT a.attisdropped
      AND n.nspname <> ALL (ARRAY['information_schema', 'observatory', 'cron'])
      AND n.nspname !~ '^(pg_|_?timescaledb_)'
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY n.nspname, c.relname, a.attnum
"""
_REFERENCES = """
    SELECT child.nspname || '.' || c.relname, parent.nspname || '.' || p.relname,
           ARRAY(SELECT attname FROM unnest(conkey) WITH ORDINALITY AS k (n, i)
                 JOIN pg_attribute ON attrelid = conrelid AND attnum = n ORDER BY i)::text[],
           ARRAY(SELECT attname FROM unnest(confkey) WITH ORDINALITY AS k (n, i)
                 JOIN pg_attribute ON attrelid = confrelid AND attnum = n ORDER BY i)::text[]
    FROM pg_constraint
    JOIN pg_class c ON c.oid = conrelid JOIN pg_namespace child ON child.oid = c.relnamespace
    JOIN pg_class p ON p.oid = confrelid JOIN pg_namespace parent ON parent.oid = p.relnamespace
    WHERE contype = 'f' AND conparentid = 0 ORDER BY conname
"""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What a stack's settings say about its masks.

    Attributes:
        known_values: of a domain, such as `model`: values that are public and stay as they are.
        masks: of own columns, `table.column` or `schema.table.column`: `omit`, `keep`, `text`, `json`, `number`,
            `time`, or a domain of pseudonyms; of a whole table: `omit`.
    """

    known_values: Known = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)


class Column(NamedTuple):
    """A column of a table; `required`: not null without a default; `generated`: PostgreSQL makes its value."""

    name: str
    kind: str
    required: bool
    generated: bool


class Reference(NamedTuple):
    """A foreign key."""

    parent: str
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CopiedTable:
    """A table that is copied.

    Attributes:
        schema: of the table.
        name: of the table.
        table: its masks.
        trace: the column of the trace that a row belongs to; None: all rows are copied.
        references: the foreign keys of an own table, whose rows are copied where the target has the parent.
    """

    schema: str
    name: str
    table: Table
    trace: str | None = None
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The tables that are copied: those of the product by name, own ones in the order of their foreign keys."""

    product: Mapping[str, CopiedTable]
    own: tuple[CopiedTable, ...]


Catalogue = dict[str, tuple[str, str, dict[str, Column]]]  # by qualified name: schema, name, columns


def plan_copies(reader: psycopg.Connection, writer: psycopg.Connection, masking: Masking) -> Copies:
    """Return what is copied.

    Raises:
        SampleError: it names each column without a mask, and each mask that cannot be applied.
    """
    plan = _Plan(source=_catalogue(reader), target=_catalogue(writer), masking=masking)
    problems = [*plan.unknown_masks()]
    product = {name: plan.product(name, table, problems) for name, table in plan.tables.items()}
    own = {name: plan.own(name, problems) for name in plan.own_tables()}
    problems += _unreadable(reader, [*product.values(), *filter(None, own.values())])
    if problems:
        raise SampleError(_message(problems))
    copied = {name: table for name, table in own.items() if table}
    return Copies(product=product, own=tuple(_in_order(writer, copied)))


def _unreadable(reader: psycopg.Connection, tables: Iterable[CopiedTable]) -> Iterator[str]:
    for each in tables:
        name = sql.Identifier(each.schema, each.name).as_string(reader)
        query = "SELECT has_table_privilege(oid, 'SELECT') FROM pg_class WHERE oid = to_regclass(%s)"
        if reader.execute(query, [name]).fetchone() == (False,):
            yield f"the source's role may not read {name}: grant it SELECT, or connect as another role"


def _message(problems: list[str]) -> str:
    shown = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
    return "Nothing was copied: " + "; ".join(shown)


def _catalogue(connection: psycopg.Connection) -> Catalogue:
    found: Catalogue = {}
    for qualified, schema, table, *parts in connection.execute(_COLUMNS).fetchall():
        found.setdefault(qualified, (schema, table, {}))[2][parts[0]] = Column(*parts)
    return found


def _in_order(writer: psycopg.Connection, copied: Mapping[str, CopiedTable]) -> Iterator[CopiedTable]:
    references: dict[str, list[Reference]] = {name: [] for name in copied}
    for child, parent, columns, parents in writer.execute(_REFERENCES).fetchall():
        if child in references:
            references[child].append(Reference(parent, tuple(columns), tuple(parents)))
    parents_of = {
        name: {each.parent for each in found if each.parent != name} & copied.keys()
        for name, found in references.items()
    }
    try:
        order = list(TopologicalSorter(parents_of).static_order())
    except CycleError as error:
        tables = ", ".join(error.args[1])
        raise SampleError(
            f"Nothing was copied: the foreign keys of {tables} form a circle. Set `{SETTING}` of one of them to omit"
        ) from error
    for name in order:
        each = copied[name]
        yield CopiedTable(
            schema=each.schema,
            name=each.name,
            table=each.table,
            trace=each.trace,
            references=tuple(found for found in references[name] if found.parent != name),
        )


class _Plan:
    def __init__(self, *, source: Catalogue, target: Catalogue, masking: Masking) -> None:
        self.source, self.target, self.masking = source, target, masking
        self.tables = product_tables(masking.known_values)
        self.given = {
            name if name.count(".") > 1 or name in source else f"public.{name}": kind
            for name, kind in masking.masks.items()
        }

    def own_tables(self) -> list[str]:
        copied = {f"public.{name}" for name in self.tables}
        return [name for name in self.source if name not in copied | NOT_COPIED]

    def unknown_masks(self) -> Iterator[str]:
        """Yield a problem for each mask of the settings that names nothing, or is none."""
        columns = {f"{table}.{name}" for table, (_, _, found) in self.source.items() for name in found}
        for name, kind in self.given.items():
            if name in self.source and kind != OMIT:
                yield f"`{SETTING}` of the table {name} is {kind}; only omit is for a whole table"
            elif name not in self.source and name not in columns:
                yield f"`{SETTING}` names {name}, which the source does not have"
            elif kind not in RESERVED and not DOMAIN.fullmatch(kind):
                yield f"`{SETTING}` of {name} is {kind!r}: expected {', '.join(sorted(RESERVED))}, or a domain"
        for domain in self.masking.known_values:
            if domain not in PUBLIC.keys() | OTHER_DOMAINS:
                yield f"values of {domain} identify and cannot be known values"

    def product(self, name: str, table: Table, problems: list[str]) -> CopiedTable:
        """Return a table of the product, with its own columns."""
        masks = dict(table.masks)
        qualified = f"public.{name}"
        if qualified not in self.source or qualified not in self.target:
            problems.append(f"{qualified} is missing: deploy the same migrations to source and target")
            return CopiedTable(schema="public", name=name, table=table)
        for each in self._columns(qualified).values():
            if each.name in masks:
                if f"{qualified}.{each.name}" in self.given:
                    problems.append(f"`{SETTING}` names {qualified}.{each.name}, whose mask is fixed")
            elif not each.generated:
                masks |= self._own_column(qualified, each, problems)
        problems += self._missing(qualified, masks)
        complete = Table(anchor=table.anchor, price=table.price, key=table.key, masks=masks)
        return CopiedTable(schema="public", name=name, table=complete)

    def own(self, qualified: str, problems: list[str]) -> CopiedTable | None:
        """Return an own table; None if it is omitted, or its columns have problems."""
        if self.given.get(qualified) == OMIT:
            return None
        schema, name, columns = self.source[qualified]
        named = {each: self.given.get(f"{qualified}.{each}") for each in columns}
        if not any(named.values()):
            problems.append(
                f"the table {qualified} has no masks: set `{SETTING}`, `{_short(qualified)}: omit`, or a mask for each "
                "column"
            )
            return None
        masks: dict[str, Mask] = {}
        for each in columns.values():
            if not each.generated or named[each.name]:
                masks |= self._own_column(qualified, each, problems)
        problems += self._missing(qualified, masks)
        trace, user = (next((each for each, kind in named.items() if kind == what), None) for what in ("trace", "user"))
        belongs_to = trace or user
        anchor = f"coalesce({column(belongs_to)}::text, '')" if belongs_to else "''"
        return CopiedTable(schema=schema, name=name, table=Table(anchor=anchor, masks=masks), trace=trace)

    def _columns(self, qualified: str) -> dict[str, Column]:
        return self.source[qualified][2]

    def _own_column(self, qualified: str, each: Column, problems: list[str]) -> dict[str, Mask]:
        place = f"{qualified}.{each.name}"
        kind = self.given.get(place)
        if kind is None:
            problems.append(
                f"the column {place} ({each.kind}) has no mask: set `{SETTING}`, for example "
                f"`{_short(place)}: {_suggested(each.kind)}`"
            )
            return {}
        if kind == OMIT:
            return {}
        mask = own_mask(kind, each.kind, self.masking.known_values)
        if mask is None:
            problems.append(f"`{SETTING}` of {place} is {kind}, which does not fit its type {each.kind}")
            return {}
        return {each.name: mask}

    def _missing(self, qualified: str, masks: Mapping[str, object]) -> Iterator[str]:
        """Yield what the target lacks, and what it requires and does not get."""
        _, _, columns = self.target.get(qualified, ("", "", {}))
        source = self._columns(qualified)
        for name in masks:
            if name not in columns:
                yield f"the target has no column {qualified}.{name}: deploy the same migrations to it"
            elif name in source and columns[name].kind != source[name].kind:
                yield (
                    f"the column {qualified}.{name} is {source[name].kind} in the source and {columns[name].kind} in "
                    "the target: deploy the same migrations to it"
                )
        for each in columns.values():
            if (
                each.required
                and not each.generated
                and each.name not in masks
                and (each.name not in source or self.given.get(f"{qualified}.{each.name}") == OMIT)
            ):
                yield f"the target requires a value of {qualified}.{each.name} (NOT NULL), which is not copied"


def _short(qualified: str) -> str:
    return qualified.removeprefix("public.")


def _suggested(kind: str) -> str:
    if kind in {"json", "jsonb"}:
        return "json"
    if kind.startswith(("timestamp", "date")):
        return "time"
    return "text" if kind.startswith(("text", "character")) and not kind.endswith("[]") else OMIT
