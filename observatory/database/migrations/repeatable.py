"""Repeatable migrations, `R__name.sql`: views, functions and procedures that are applied again when their file changes.

They run in the order of their names after all numbered files. Owns which statements they may contain, their table
`observatory.repeatable_migrations`, and which of them are pending. Each application adds a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from observatory.database.errors import MigrationFileError
from observatory.database.migrations.files import Edition, Migration
from observatory.database.migrations.ledger import LOCK_IS_HELD

if TYPE_CHECKING:
    from observatory.database.migrations.ledger import Author
    from observatory.database.migrations.statements import Script

_LAST = 999_999_999

_CREATE = """
    CREATE TABLE observatory.repeatable_migrations (
        name          text NOT NULL,
        variant       text CHECK (variant IN ('apache', 'community')),
        sha256        text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
        source        text NOT NULL,
        edition       text NOT NULL CHECK (edition IN ('apache', 'community')),
        objects       jsonb NOT NULL,
        duration_ms   integer NOT NULL CHECK (duration_ms >= 0),
        applied_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
        applied_by    text NOT NULL,
        deployment_id text NOT NULL,
        backup_label  text,
        PRIMARY KEY (name, applied_at)
    )
"""
_EXISTS = "SELECT to_regclass('observatory.repeatable_migrations') IS NOT NULL"
# The newest row of each file; `missing` where one of its objects is gone, for example dropped by a numbered file.
_READ = """
    SELECT DISTINCT ON (name) name, variant, sha256, duration_ms, applied_at, applied_by, deployment_id, backup_label,
           EXISTS (SELECT FROM jsonb_to_recordset(objects) AS made(kind text, identifier text)
                   WHERE CASE kind WHEN 'view' THEN to_regclass(identifier)::oid
                                   ELSE to_regprocedure(identifier)::oid END IS NULL) AS missing
    FROM observatory.repeatable_migrations ORDER BY name, applied_at DESC
"""
_DEFINED = """
    SELECT 'view' AS kind, created AS identifier, n.nspname || '.' || c.relname AS name,
           pg_get_viewdef(c.oid) AS definition
    FROM unnest(%(views)s::text[]) AS created JOIN pg_class c ON c.oid = to_regclass(created)
    JOIN pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT 'routine', created,
           n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           pg_get_functiondef(p.oid)
    FROM unnest(%(routines)s::text[]) AS created JOIN pg_proc p ON p.oid = to_regprocedure(created)
    JOIN pg_namespace n ON n.oid = p.pronamespace
"""
_RECORD = f"""
    INSERT INTO observatory.repeatable_migrations
        (name, variant, sha256, source, edition, objects, duration_ms, applied_by, deployment_id, backup_label)
    SELECT %(name)s, %(variant)s, %(sha256)s, %(source)s, %(edition)s,
           coalesce(jsonb_agg(to_jsonb(made) ORDER BY made.kind, made.name), '[]'),
           %(duration_ms)s, %(actor)s, %(deployment_id)s, %(backup_label)s
    FROM ({_DEFINED}) AS made
    {LOCK_IS_HELD}
"""  # noqa: S608 - constants
_OBJECTS = """
    SELECT name, objects FROM observatory.repeatable_migrations AS newest
    WHERE applied_at = (SELECT max(applied_at) FROM observatory.repeatable_migrations WHERE name = newest.name)
    ORDER BY name
"""
_SOURCES = """
    SELECT source FROM (SELECT DISTINCT ON (name) name, source FROM observatory.repeatable_migrations
                        ORDER BY name, applied_at DESC) AS newest ORDER BY name
"""
# Of those files whose objects all exist.
_STANDING = f"""
    SELECT name, sha256, source FROM ({_READ}) AS newest JOIN observatory.repeatable_migrations AS texts
        USING (name, sha256, applied_at)
    WHERE NOT missing ORDER BY name
"""  # noqa: S608 - constants
_LACKS = """
    SELECT EXISTS (SELECT FROM unnest(%(views)s::text[]) AS created WHERE to_regclass(created) IS NULL)
        OR EXISTS (SELECT FROM unnest(%(routines)s::text[]) AS created WHERE to_regprocedure(created) IS NULL)
"""
_NOW = f"SELECT kind, name, definition FROM ({_DEFINED}) AS made"  # noqa: S608 - constants

_ALLOWED = (
    "A repeatable migration may contain only CREATE OR REPLACE VIEW, FUNCTION or PROCEDURE, COMMENT, GRANT, and DROP … "
    "IF EXISTS without CASCADE of what it then creates. Write anything else as a numbered migration"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatableEntry:
    """The newest application of a repeatable migration.

    Attributes:
        name: `R__name`.
        variant: the edition that the file is for; None is for all.
        sha256: of the file as it was applied.
        duration_ms: time spent in its statements.
        applied_at: when.
        applied_by: the actor of the deployment.
        deployment_id: of that deployment.
        backup_label: the backup that was made right before; None: none was made.
        missing: an object that it made no longer exists.
    """

    name: str
    variant: Edition | None
    sha256: str
    duration_ms: int
    applied_at: datetime
    applied_by: str
    deployment_id: str
    backup_label: str | None
    missing: bool

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name}.{self.variant}.sql" if self.variant else f"{self.name}.sql"


class MadeObject(NamedTuple):
    """A view or routine that a repeatable migration made, with its definition then and now (None: it is gone)."""

    file: str
    kind: str
    name: str
    definition: str
    found: str | None


class StandingFile(NamedTuple):
    """A repeatable migration as it was applied last, whose objects all exist."""

    name: str
    sha256: str
    source: str


class _Creation(NamedTuple):
    kind: str  # view, routine
    identifier: str  # for to_regclass or to_regprocedure


def as_last(script: Script, version: int = _LAST) -> Script:
    """Return the script with a number, by default after all others, for checks that go by numbers.

    A release that supports the newest numbered file supports the repeatable ones beside it.
    """
    return replace(script, migration=script.migration._replace(version=version))


def create_table(connection: psycopg.Connection) -> None:
    """Create the table where it is missing. The caller holds the migration lock and has created the ledger."""
    if connection.execute(_EXISTS).fetchone() != (True,):
        with connection.transaction():
            connection.execute(_CREATE.encode())


def read_entries(connection: psycopg.Connection) -> tuple[RepeatableEntry, ...]:
    """Return the newest row of each file, by name; none where nothing was applied yet."""
    if connection.execute(_EXISTS).fetchone() != (True,):
        return ()
    with connection.cursor(row_factory=class_row(RepeatableEntry)) as cursor:
        return tuple(cursor.execute(_READ.encode()).fetchall())


def newest_sources(connection: psycopg.Connection) -> list[str]:
    """Return the texts of the newest applications, in the order in which they run."""
    if connection.execute(_EXISTS).fetchone() != (True,):
        return []
    return [source for (source,) in connection.execute(_SOURCES.encode())]


def standing_files(connection: psycopg.Connection) -> tuple[StandingFile, ...]:
    """Return the newest texts of the files whose objects all exist, in the order in which they run."""
    if connection.execute(_EXISTS).fetchone() != (True,):
        return ()
    return tuple(StandingFile(*row) for row in connection.execute(_STANDING.encode()))


def lacks_objects(connection: psycopg.Connection, script: Script) -> bool:
    """Return whether an object that a file makes does not exist."""
    return connection.execute(_LACKS.encode(), _identifiers(script)).fetchone() == (True,)


def pending_repeatables(files: Sequence[Migration], entries: Iterable[RepeatableEntry]) -> tuple[Migration, ...]:
    """Return the files that were never applied, whose text has changed since, or whose objects are gone."""
    current = {entry.name: entry for entry in entries if not entry.missing}
    return tuple(each for each in files if each.name not in current or current[each.name].sha256 != each.sha256)


def removed_files(files: Sequence[Migration], entries: Iterable[RepeatableEntry]) -> tuple[str, ...]:
    """Return the applied files that are no longer in the directory; what they made stays."""
    names = {each.name for each in files}
    return tuple(entry.file for entry in entries if entry.name not in names)


def record(connection: psycopg.Connection, script: Script, author: Author, *, duration_ms: int, holder: int) -> bool:
    """Write the row of an application, with what the file made, inside the caller's transaction.

    Args:
        connection: to the database.
        script: the file.
        author: of the row.
        duration_ms: time spent in its statements.
        holder: process id of the session that must hold the migration lock.

    Returns:
        Whether that session holds it.
    """
    values = {
        "name": script.migration.name,
        "variant": script.migration.variant,
        "sha256": script.migration.sha256,
        "source": script.migration.sql,
        "edition": author.edition,
        **_identifiers(script),
        "duration_ms": duration_ms,
        "actor": author.actor,
        "deployment_id": author.deployment_id,
        "backup_label": author.backup_label,
    }
    row = connection.execute(_RECORD.encode(), {**values, "holder": holder}).fetchone()
    return bool(row and row[0])


def made_objects(connection: psycopg.Connection, entries: Iterable[RepeatableEntry]) -> list[MadeObject]:
    """Return what the newest applications made, and its definition now.

    Args:
        connection: with the search_path of migrations; the texts of definitions depend on it.
        entries: from `read_entries`.
    """
    if connection.execute(_EXISTS).fetchone() != (True,):
        return []
    named = {each.name: each.file for each in entries}
    rows = [(name, each) for name, objects in connection.execute(_OBJECTS) if name in named for each in objects]
    made: Mapping[str, list[str]] = {
        f"{kind}s": [each["identifier"] for _, each in rows if each["kind"] == kind] for kind in ("view", "routine")
    }
    now = {(kind, name): text for kind, name, text in connection.execute(_NOW.encode(), made)}
    return [
        MadeObject(named[name], each["kind"], each["name"], each["definition"], now.get((each["kind"], each["name"])))
        for name, each in rows
    ]


def check_repeatables(scripts: Iterable[Script]) -> None:
    """Refuse statements that must not run again, and two files that make the same object.

    Raises:
        MigrationFileError: names the place.
    """
    makers: dict[_Creation, str] = {}
    for script in scripts:
        migration = script.migration
        if not script.transactional:
            raise MigrationFileError(
                f"{migration.place()}: a repeatable migration is one transaction. Remove '-- transaction: false'"
            )
        _check_statements(script)
        for creation in _creations(script):
            other = makers.setdefault(creation, migration.file)
            if other != migration.file:
                raise MigrationFileError(
                    f"{migration.place()}: makes the {creation.kind} {creation.identifier}, which {other} makes too, "
                    "so the last one that changes would win. Remove it from one of them"
                )


def _check_statements(script: Script) -> None:
    created = [each.identifier.partition("(")[0] for each in _creations(script)]
    if not created:
        raise MigrationFileError(f"{script.migration.place()}: makes no view, function or procedure. {_ALLOWED}")
    left = list(created)
    for offset, node in _nodes(script):
        problem = _problem(node, left)
        if problem:
            raise MigrationFileError(f"{script.migration.place(offset)}: {problem}. {_ALLOWED}")
        for each in _created_by(node):
            left.remove(each.identifier.partition("(")[0])


def _problem(node: Any, later: Sequence[str]) -> str | None:
    """Return what is wrong with a statement; `later` are the names that it or a later statement creates."""
    from pglast import ast, enums  # noqa: PLC0415 - loads the parser

    is_temporary = isinstance(node, ast.ViewStmt) and node.view.relpersistence == "t"
    match node:
        case ast.ViewStmt() | ast.CreateFunctionStmt() if not node.replace:
            problem = "CREATE without OR REPLACE fails when the file runs again"
        case ast.ViewStmt() if is_temporary:
            problem = "a temporary view ends with its session"
        case ast.ViewStmt() | ast.CreateFunctionStmt() | ast.CommentStmt():
            return None
        case ast.GrantStmt() if node.is_grant and node.targtype == enums.GrantTargetType.ACL_TARGET_OBJECT:
            return None
        case ast.DropStmt():
            return _problem_of_drop(node, later)
        case _:
            problem = "this statement is not allowed"
    return problem


def _problem_of_drop(node: Any, later: Sequence[str]) -> str | None:
    from pglast import enums  # noqa: PLC0415 - loads the parser

    kinds = {enums.ObjectType[f"OBJECT_{name}"] for name in ("VIEW", "FUNCTION", "PROCEDURE", "ROUTINE")}
    if node.removeType not in kinds:
        return "this DROP is not allowed"
    if not node.missing_ok:
        return "DROP without IF EXISTS fails where the object does not exist"
    if node.behavior == enums.DropBehavior.DROP_CASCADE:
        return "CASCADE would drop what other files made, and they do not run again"
    for each in node.objects:
        parts = getattr(each, "objname", each)
        name = _qualified([part.sval for part in parts])
        if name not in later:
            return f"drops {name}, which the file does not create afterwards"
    return None


def _nodes(script: Script) -> Iterator[tuple[int, Any]]:
    import pglast  # noqa: PLC0415 - loads the parser

    for statement in script.statements:
        yield statement.offset, pglast.parse_sql(statement.sql)[0].stmt


def _creations(script: Script) -> list[_Creation]:
    return [creation for _, node in _nodes(script) for creation in _created_by(node)]


def _identifiers(script: Script) -> dict[str, list[str]]:
    """Return the identifiers of what a file makes, by the plural of their kind."""
    made = _creations(script)
    return {f"{kind}s": [each.identifier for each in made if each.kind == kind] for kind in ("view", "routine")}


def _created_by(node: Any) -> list[_Creation]:
    from pglast import ast  # noqa: PLC0415 - loads the parser

    if isinstance(node, ast.ViewStmt):
        names = [node.view.schemaname, node.view.relname]
        return [_Creation("view", _qualified([name for name in names if name]))]
    if isinstance(node, ast.CreateFunctionStmt):
        name = _qualified([part.sval for part in node.funcname])
        return [_Creation("routine", f"{name}({', '.join(_argument_types(node))})")]
    return []


def _argument_types(node: Any) -> Iterator[str]:
    from pglast import enums  # noqa: PLC0415 - loads the parser
    from pglast.stream import RawStream  # noqa: PLC0415

    outputs = {enums.FunctionParameterMode.FUNC_PARAM_TABLE}
    if not node.is_procedure:
        outputs.add(enums.FunctionParameterMode.FUNC_PARAM_OUT)
    for parameter in node.parameters or ():
        if parameter.mode not in outputs:
            yield RawStream()(parameter.argType)


def _qualified(names: Sequence[str]) -> str:
    return sql.Identifier(*(names if len(names) > 1 else ["public", *names])).as_string()
