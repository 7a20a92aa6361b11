"""What a rollback would lose: the rows of the live database that the restored one lacks, by comparing both.

Times in rows do not count: a client sends them, and rows change. Each table, and each chunk of a hypertable, has a
checksum in both databases; where those differ, the rows are compared as multisets, so that tables without a key are
compared too. A changed row is lost in its new form and returns in its old one. Damage is what a rollback is for: what
the live database cannot read is named, and not compared.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.database.connection import cancellable, connect
from observatory.database.error_translation import error_summary, translate_errors
from observatory.errors import ObservatoryError
from observatory.interruption.parallel import in_parallel

FETCHED = 10_000  # rows at a time
DAMAGE = ("XX", "58")  # classes of SQLSTATE: an internal error such as a damaged page, and one of the operating system
_SETTINGS = {"timezone": "UTC", "extra_float_digits": "1", "bytea_output": "hex", "search_path": "pg_catalog"}

# Ordinary tables without those of extensions, and chunks by the name of their hypertable or aggregate.
_LEAVES: LiteralString = """
    SELECT coalesce(v.view_schema, c.hypertable_schema, root.nspname),
           coalesce(v.view_name, c.hypertable_name, root.relname),
           n.nspname, r.relname, c.chunk_name IS NOT NULL,
           (SELECT json_object_agg(attname, CASE WHEN atttypid = ANY (%(hashed)s::regtype[])
                THEN format_type(atttypid, NULL) ELSE '' END ORDER BY attname)
            FROM pg_attribute WHERE attrelid = r.oid AND attnum > 0 AND NOT attisdropped)
    FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
    LEFT JOIN {chunks} c ON (c.chunk_schema, c.chunk_name) = (n.nspname, r.relname)
    LEFT JOIN {aggregates} v
        ON (v.materialization_hypertable_schema, v.materialization_hypertable_name)
            = (c.hypertable_schema, c.hypertable_name)
    CROSS JOIN LATERAL (
        SELECT rn.nspname, rr.relname FROM pg_class rr JOIN pg_namespace rn ON rn.oid = rr.relnamespace
        WHERE rr.oid = coalesce(pg_partition_root(r.oid), r.oid)) AS root
    WHERE r.relkind = 'r' AND r.relpersistence = 'p' AND NOT EXISTS (
            SELECT FROM {hypertables} h
            WHERE (h.hypertable_schema, h.hypertable_name) = (n.nspname, r.relname))
      AND (c.chunk_name IS NOT NULL OR n.nspname !~ '^(pg_|_?timescaledb_|information_schema$|cron$)')
    ORDER BY 1, 2, 3, 4
"""
_HAS_VIEWS = "SELECT to_regclass('timescaledb_information.chunks') IS NOT NULL"
_VIEWS: Mapping[str, LiteralString] = {
    "chunks": "timescaledb_information.chunks",
    "aggregates": "timescaledb_information.continuous_aggregates",
    "hypertables": "timescaledb_information.hypertables",
}
# In place of each in a database that lacks them: it was dropped and created again, or lost the extension.
_NO_VIEW: LiteralString = """
    (SELECT '' AS chunk_schema, '' AS chunk_name, '' AS hypertable_schema, '' AS hypertable_name, '' AS view_schema,
     '' AS view_name, '' AS materialization_hypertable_schema, '' AS materialization_hypertable_name LIMIT 0)
"""
_TABLES: LiteralString = """
    SELECT n.nspname, r.relname FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
    WHERE r.relkind IN ('r', 'p') AND r.relpersistence IN ('p', 'u') AND NOT r.relispartition
      AND n.nspname !~ '^(pg_|_?timescaledb_|information_schema$|cron$)'
"""
# No backup has their rows, and a standby cannot read them.
_UNLOGGED: LiteralString = """
    SELECT n.nspname, r.relname FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
    WHERE r.relkind = 'r' AND r.relpersistence = 'u' AND pg_relation_size(r.oid) > 0 ORDER BY 1, 2
"""
_OTHER_DATABASES = """
    SELECT datname FROM pg_database
    WHERE datallowconn AND NOT datistemplate AND datname NOT IN (current_database(), 'postgres') ORDER BY 1
"""
# Types with a hash of their own, which is four times as fast as that of the text: with it 1.0 and 1.00 are equal.
_HASHED = (
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "uuid", "bytea", "jsonb", "date",
    "timestamp", "timestamptz", "interval", "inet", "text[]",
)  # fmt: skip
_HASH, _HASH_OF_TEXT = "hash_record_extended({row}::record, 0)", "hashtextextended({row}::text, 0)"
_HASHES = "SELECT {hash} AS hash FROM {only} {leaf} AS t"
_CHECKSUM = "SELECT count(*), coalesce(sum(hash), 0) FROM ({hashes}) AS rows"
_MULTISET = "SELECT hash, count(*) FROM ({hashes}) AS rows GROUP BY 1 ORDER BY 1"
# Those that began after the restored state, and those that were running then, which a standby's snapshot does not list.
_SNAPSHOT: LiteralString = """
    SELECT pg_snapshot_xmax(s)::text::bigint, array(
        SELECT x FROM generate_series(pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint - 1) AS x
        WHERE pg_xact_status(x::text::xid8) = 'in progress')
    FROM pg_current_snapshot() AS s
"""
_COMMITTED: LiteralString = """
    SELECT count(*) FROM (
        SELECT generate_series(%(first)s, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)
        UNION SELECT unnest(%(running)s::bigint[])) AS transactions (id)
    WHERE pg_xact_status(id::text::xid8) = 'committed'
"""


@dataclass(frozen=True, kw_only=True)
class TableLoss:
    """How the rows of a table differ.

    Attributes:
        table: its name, with the schema unless that is `public`.
        now: rows of the live table.
        then: rows of the restored table.
        lost: rows of the live table that the restored one lacks.
        returned: rows of the restored table that the live one lacks.
    """

    table: str
    now: int
    then: int
    lost: int
    returned: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What would be lost: the transactions that were committed since, and the tables that differ.

    Attributes:
        transactions: None where they cannot be counted, as of a dump, of a timeline that was left, or after damage.
        tables: whose rows differ.
        made_since: tables that the restored database does not have, empty ones too.
        emptied: unlogged tables with rows, which are empty afterwards.
        databases: others of the server, which are as they were, too; their rows were not compared.
        unreadable: live tables, and in brackets a part, that cannot be read and so were not compared: `tables` and
            `rows` are without them.
    """

    transactions: int | None
    tables: tuple[TableLoss, ...]
    made_since: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all tables that would be lost; at least so many where a table is unreadable."""
        return sum(each.lost for each in self.tables)


class Leaf(NamedTuple):
    """A table that has rows of its own: an ordinary one, or a chunk, of which some rows may be compressed."""

    schema: str
    name: str
    is_chunk: bool


Columns = Mapping[str, str]  # the types by name; empty for a type without a hash of its own


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """The table that shows the rows of a leaf, as schema and name, and the leaf's columns."""

    table: tuple[str, str]
    columns: Columns


Checksum = tuple[int, int]
_NO_ROWS: Checksum = (0, 0)


class _UnreadableError(ObservatoryError):
    """The live database cannot read a table."""


@dataclass(frozen=True, kw_only=True)
class _State:
    """One of the two databases, in a transaction."""

    connection: psycopg.Connection
    leaves: Mapping[Leaf, _Leaf]
    is_live: bool

    def checksums(self, columns: Mapping[Leaf, Columns]) -> dict[Leaf, Checksum]:
        """Return the number of rows and a checksum of each leaf; of a live one that cannot be read none.

        Raises:
            RollbackRefusedError: the restored database is damaged.
        """
        found = {}
        for leaf in self.leaves:
            query = sql.SQL(_CHECKSUM).format(hashes=_hashes(leaf, columns[leaf]))
            with suppress(_UnreadableError), self.reading(self.named(leaf)):
                count, total = self.connection.execute(query).fetchone() or _NO_ROWS
                found[leaf] = (int(count), int(total))
        return found

    def multiset(self, columns: Mapping[Leaf, Columns]) -> Generator[tuple[int, int]]:
        """Yield each hash of the rows of some leaves with the number of its rows, in the order of the hashes.

        Raises:
            _UnreadableError: one of them cannot be read.
            RollbackRefusedError: the restored database is damaged.
        """
        mine = {leaf: names for leaf, names in columns.items() if leaf in self.leaves}
        if not mine:
            return
        hashes = sql.SQL(" UNION ALL ").join(_hashes(leaf, names) for leaf, names in mine.items())
        with (
            self.reading(self.named(next(iter(mine)))),
            self.connection.cursor(name="rows") as cursor,
        ):
            cursor.itersize = FETCHED
            yield from cursor.execute(sql.SQL(_MULTISET).format(hashes=hashes))

    def named(self, leaf: Leaf) -> str:
        """Return the table of a leaf, and in brackets the leaf if it is another one."""
        table, own = _shown(self.leaves[leaf].table), _shown((leaf.schema, leaf.name))
        return table if table == own else f"{table} ({own})"

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Run the statements of the block so that the transaction continues after damage.

        Raises:
            _UnreadableError: the live database is damaged.
            RollbackRefusedError: the restored one is; the message names `what`.
        """
        try:
            with cancellable(self.connection), self.connection.transaction():
                yield
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(DAMAGE):
                raise
            if self.is_live:
                raise _UnreadableError from error
            raise RollbackRefusedError(
                f"the restored database is damaged, too: {what}: {error_summary(error)}; nothing was changed",
                remedy="Choose an earlier target. `observatory backup verify --contents` names damaged files.",
            ) from error


def compare(live: str, restored: str, *, same_server: bool = True, same_timeline: bool = True) -> Loss:
    """Return what the live database has, and a restored earlier state of it lacks.

    Args:
        live: connection string of the live database, as superuser.
        restored: connection string of the restored one, as superuser; a standby that is paused will do.
        same_server: whether the restored one is an earlier state of the live one, and no copy of its rows.
        same_timeline: whether the live one has all transactions of the restored one; others have the same numbers.

    Raises:
        UnreachableError: a connection failed or broke.
        StatementFailedError: PostgreSQL rejected a statement.
        RollbackRefusedError: the restored database is damaged.
    """
    with _session(live) as now, _session(restored) as then, translate_errors("comparison"):
        states = (
            _State(connection=now, leaves=_leaves(now), is_live=True),
            _State(connection=then, leaves=_leaves(then), is_live=False),
        )
        transactions = _committed_since(*states) if same_server and same_timeline else None
        made_since = tuple(_shown(table) for table in sorted(_tables(now) - _tables(then)))
        emptied = tuple(_shown(table) for table in now.execute(_UNLOGGED).fetchall()) if same_server else ()
        databases = tuple(str(name) for (name,) in now.execute(_OTHER_DATABASES).fetchall()) if same_server else ()
        tables, unreadable = _compare_rows(*states)
    return Loss(
        transactions=transactions,
        tables=tables,
        made_since=made_since,
        emptied=emptied,
        databases=databases,
        unreadable=unreadable,
    )


def _compare_rows(live: _State, restored: _State) -> tuple[tuple[TableLoss, ...], tuple[str, ...]]:
    """Return the tables whose rows differ, and names of what the live database cannot read."""
    leaves = {**restored.leaves, **live.leaves}
    columns = {leaf: _common(live.leaves.get(leaf), restored.leaves.get(leaf)) for leaf in leaves}
    sums_now, sums_then = in_parallel(lambda state: state.checksums(columns), (live, restored))
    unreadable = {leaf for leaf in live.leaves if leaf not in sums_now}
    found = []
    for table in sorted({each.table for each in leaves.values()}):
        mine = {leaf for leaf in leaves if leaves[leaf].table == table} - unreadable
        differing = [leaf for leaf in mine if sums_now.get(leaf, _NO_ROWS) != sums_then.get(leaf, _NO_ROWS)]
        if not differing:
            continue
        try:
            lost, returned = _difference(live, restored, {leaf: columns[leaf] for leaf in differing})
        except _UnreadableError:
            unreadable.update(leaf for leaf in differing if leaf in live.leaves)
            continue
        found.append(
            TableLoss(
                table=_shown(table),
                now=_rows(sums_now, mine),
                then=_rows(sums_then, mine),
                lost=lost,
                returned=returned,
            )
        )
    return tuple(found), tuple(sorted(live.named(leaf) for leaf in unreadable))


def _rows(sums: Mapping[Leaf, Checksum], leaves: Collection[Leaf]) -> int:
    return sum(sums.get(leaf, _NO_ROWS)[0] for leaf in leaves)


@contextmanager
def _session(conninfo: str) -> Iterator[psycopg.Connection]:
    """Open a session with one snapshot for all of its queries."""
    with connect(conninfo, purpose="compare", settings=_SETTINGS) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection


def _committed_since(live: _State, restored: _State) -> int | None:
    """Return the number of transactions that only the live database has; None where it cannot read their states."""
    first, running = restored.connection.execute(_SNAPSHOT).fetchone() or (0, [])
    with suppress(_UnreadableError), live.reading("transactions"):
        row = live.connection.execute(_COMMITTED, {"first": first, "running": running}).fetchone()
        return int(row[0]) if row else 0
    return None


def _tables(connection: psycopg.Connection) -> set[tuple[str, str]]:
    return {(schema, name) for schema, name in connection.execute(_TABLES).fetchall()}


def _shown(table: Sequence[str]) -> str:
    return table[1] if table[0] == "public" else ".".join(table)


def _leaves(connection: psycopg.Connection) -> dict[Leaf, _Leaf]:
    has_views = connection.execute(_HAS_VIEWS).fetchone() == (True,)
    views = {name: sql.SQL(view if has_views else _NO_VIEW) for name, view in _VIEWS.items()}
    query, hashed = sql.SQL(_LEAVES).format(**views), {"hashed": list(_HASHED)}
    return {
        Leaf(schema, name, chunk): _Leaf(table=(shown_schema, shown), columns=columns or {})
        for shown_schema, shown, schema, name, chunk, columns in connection.execute(query, hashed).fetchall()
    }


def _common(now: _Leaf | None, then: _Leaf | None) -> Columns:
    """Return the columns by which the rows of a leaf are compared: those of both states, or of the one that has it."""
    if now and then:
        shared = {name: (kind, then.columns[name]) for name, kind in now.columns.items() if name in then.columns}
        return {name: kind if kind == earlier else "" for name, (kind, earlier) in shared.items()}
    return (now or then or _Leaf(table=("", ""), columns={})).columns


def _hashes(leaf: Leaf, columns: Columns) -> sql.Composed:
    row = sql.SQL("ROW({})").format(sql.SQL(", ").join(sql.Identifier("t", name) for name in columns))
    only = sql.SQL("" if leaf.is_chunk else "ONLY")  # a table that others inherit from has their rows, too
    value = sql.SQL(_HASH if all(columns.values()) else _HASH_OF_TEXT).format(row=row)
    return sql.SQL(_HASHES).format(hash=value, only=only, leaf=sql.Identifier(leaf.schema, leaf.name))


def _difference(live: _State, restored: _State, columns: Mapping[Leaf, Columns]) -> tuple[int, int]:
    """Return how many rows of some leaves only the live database has, and how many only the restored one.

    Raises:
        _UnreadableError: the live database cannot read one of them.
    """
    lost = returned = 0
    with closing(live.multiset(columns)) as now, closing(restored.multiset(columns)) as then:
        mine, theirs = next(now, None), next(then, None)
        while mine or theirs:
            if theirs is None or (mine and mine[0] < theirs[0]):
                assert mine is not None  # noqa: S101 - one of them is left
                lost, mine = lost + mine[1], next(now, None)
            elif mine is None or theirs[0] < mine[0]:
                returned, theirs = returned + theirs[1], next(then, None)
            else:
                lost, returned = lost + max(0, mine[1] - theirs[1]), returned + max(0, theirs[1] - mine[1])
                mine, theirs = next(now, None), next(then, None)
    return lost, returned
