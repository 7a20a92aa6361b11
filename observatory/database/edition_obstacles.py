"""Finds what would stop a move to the community edition: objects and jobs that migrations of your own have added.

Owns which jobs the product's files replace, and which stay. Reads the catalogue and the files; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from observatory.database.migrations.files import Migration

# The jobs of the Apache edition's files, which policies of the community edition replace.
REPLACED_JOBS: Mapping[str, tuple[str, str]] = {
    **{
        f"refresh {name}": (schedule, f"CALL observatory.refresh_aggregate('{name}')")
        for name, schedule in {
            "llm_metrics_1min": "30 seconds",
            "llm_metrics_1hour": "*/5 * * * *",
            "llm_metrics_1day": "3 * * * *",
            "llm_error_summary": "1-59/5 * * * *",
            "cost_analysis_hourly": "2-59/5 * * * *",
        }.items()
    },
    **{
        f"retention of {table.partition('.')[2]}": (
            f"{minute} * * * *",
            f"CALL observatory.drop_old_chunks('{table}', INTERVAL '{kept}')",
        )
        for minute, table, kept in (
            (16, "public.llm_traces", "90 days"),
            (17, "public.llm_metrics", "37 days"),
            (18, "public.llm_logs", "37 days"),
            (21, "observatory.llm_metrics_1min", "37 days"),
            (22, "observatory.llm_metrics_1hour", "210 days"),
            (23, "observatory.llm_metrics_1day", "1095 days"),
            (24, "observatory.llm_error_summary", "210 days"),
            (26, "observatory.cost_analysis_hourly", "210 days"),
        )
    },
    "purge job runs": (
        "40 2 * * *",
        "DELETE FROM cron.job_run_details WHERE end_time < now() - INTERVAL $$7 days$$",
    ),
}
_JOBS = "SELECT name, schedule, command FROM observatory.jobs ORDER BY name"
_AGGREGATES = "SELECT name FROM observatory.aggregates ORDER BY name"
_OF_AGGREGATE = re.compile(
    r"\s*CALL\s+observatory\.(?:refresh_aggregate\s*\(\s*'(?P<refreshed>[^']+)'\s*\)"
    r"|drop_old_chunks\s*\(\s*'observatory\.(?P<kept>[^']+)'.*\))\s*;?\s*",
    re.IGNORECASE,
)
_DROPPED = r"\b(?:refresh_aggregate|drop_old_chunks)\b|\bobservatory\.(?:{})\b"

# What depends on the objects that the move drops, except those objects themselves. A view depends by its rule.
_DEPENDENTS = """
    WITH named AS (
        SELECT to_regclass(name)::oid AS oid FROM unnest(%(relations)s::text[]) AS name
        WHERE to_regclass(name) IS NOT NULL
    ), relations AS (
        SELECT oid FROM named UNION SELECT inhrelid FROM pg_inherits JOIN named ON inhparent = oid  -- chunks
    ), dropped AS (
        SELECT 'pg_class'::regclass AS class, oid FROM relations
        UNION ALL SELECT 'pg_type'::regclass, reltype FROM pg_class JOIN relations USING (oid)
        UNION ALL SELECT 'pg_type'::regclass, typarray FROM pg_type
                  WHERE typrelid IN (SELECT oid FROM relations) AND typarray <> 0
        UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p
                  WHERE pronamespace = 'observatory'::regnamespace
                    AND proname IN ('refresh_aggregate', 'drop_old_chunks')
    ), dependents AS (
        SELECT d.classid, d.objid, d.objsubid, d.refclassid, d.refobjid,
               CASE d.classid
                   WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = d.objid)
                   WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = d.objid)
                   WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = d.objid)
                   ELSE d.objid
               END AS owner
        FROM pg_depend d JOIN dropped ON d.refclassid = dropped.class AND d.refobjid = dropped.oid
        WHERE d.deptype = 'n'
    )
    SELECT DISTINCT
        CASE WHEN classid = 'pg_rewrite'::regclass THEN pg_describe_object('pg_class'::regclass, owner, 0)
             ELSE pg_describe_object(classid, objid, objsubid) END
        || ' depends on ' || pg_describe_object(refclassid, refobjid, 0)
    FROM dependents
    WHERE owner NOT IN (SELECT oid FROM dropped)
    UNION
    SELECT format('trigger %%s is on %%s', tgname, tgrelid::regclass) FROM pg_trigger
    WHERE tgrelid IN (SELECT oid FROM named) AND NOT tgisinternal AND tgname !~ '^ts_'
    ORDER BY 1
"""
_EXISTS = {
    "relation": "SELECT to_regclass(%(name)s::text) IS NOT NULL",
    "type": "SELECT to_regtype(%(name)s::text) IS NOT NULL",
    "schema": "SELECT to_regnamespace(%(name)s::text) IS NOT NULL",
    "function": """
        SELECT EXISTS (SELECT FROM pg_proc
                       WHERE format('%%I.%%I', pronamespace::regnamespace::text, proname) = %(name)s)
    """,
    "column": """
        SELECT EXISTS (SELECT FROM pg_attribute
                       WHERE attrelid = to_regclass(%(table)s::text) AND attname = %(column)s AND NOT attisdropped)
    """,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    """An object that a file creates, and fails to create where it exists: `place` is `file:line:column`."""

    kind: str
    name: str
    place: str
    column: str = ""


@dataclass(kw_only=True)
class Contents:
    """What the community edition's files create, what they drop first, and which cannot run in a transaction."""

    created: list[Created] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    outside_transaction: list[str] = field(default_factory=list)

    @property
    def relations(self) -> set[str]:
        """The relations that the files create, with their schemas."""
        return {each.name for each in self.created if each.kind == "relation"}


def find_obstacles(connection: psycopg.Connection, files: Sequence[Migration]) -> tuple[str, ...]:
    """Return a line for each thing that would stop the move, or that it would break, with its name.

    Args:
        connection: as the role that owns the schema.
        files: the community edition's files that replace applied ones of the Apache edition.
    """
    contents = _contents(files)
    names = [name for (name,) in connection.execute(_AGGREGATES).fetchall()]
    dropped = dropped_relations(names)
    return (
        *(
            f"the aggregate {name} is in observatory.aggregates, but no file of the community edition creates it. "
            "Write the file that does, or remove the aggregate"
            for name in names
            if f"public.{name}" not in contents.relations
        ),
        *(
            f"{line}. Drop it, and create it again after the move"
            for (line,) in connection.execute(_DEPENDENTS.encode(), {"relations": dropped}).fetchall()
        ),
        *(
            f"{file} has the header `-- transaction: false`, and the move is one transaction. Remove the header, or "
            "move its statements to a later file"
            for file in contents.outside_transaction
        ),
        *_existing(connection, contents, {*dropped, *contents.dropped}),
        *_broken_jobs(connection, contents, names),
    )


def own_jobs(connection: psycopg.Connection, files: Sequence[Migration]) -> list[tuple[str, str, str]]:
    """Return name, schedule and command of the jobs that stay: those that the files do not replace."""
    relations = _contents(files).relations
    return [
        (name, schedule, command)
        for name, schedule, command in connection.execute(_JOBS).fetchall()
        if not _is_replaced(name, command, relations)
    ]


def dropped_relations(aggregates: Sequence[str]) -> list[str]:
    """Return the relations that the move drops: those of the aggregates, and the Apache edition's own tables."""
    tables = ["observatory.aggregates", "observatory.jobs", "observatory.edition_gaps"]
    return [*tables, *(each for name in aggregates for each in _relations_of(name))]


def _relations_of(aggregate: str) -> tuple[str, str, str]:
    return f"public.{aggregate}", f"observatory.{aggregate}", f"observatory.{aggregate}_live"


def _is_replaced(name: str, command: str, relations: set[str]) -> bool:
    """Return whether a job is the product's, or of an aggregate that the files create."""
    if name in REPLACED_JOBS:
        return True
    found = _OF_AGGREGATE.fullmatch(command)
    return found is not None and f"public.{found['refreshed'] or found['kept']}" in relations


def _broken_jobs(connection: psycopg.Connection, contents: Contents, aggregates: Sequence[str]) -> Iterator[str]:
    tables = "|".join(re.escape(each) for name in ("aggregates", *aggregates) for each in (name, f"{name}_live"))
    dropped = re.compile(_DROPPED.format(tables), re.IGNORECASE)
    for name, schedule, command in connection.execute(_JOBS).fetchall():
        if name in REPLACED_JOBS:
            if (schedule, command) != REPLACED_JOBS[name]:
                yield (
                    f"the job {name!r} in observatory.jobs was changed, and a policy with the product's schedule and "
                    f"interval replaces it. Set it back to {REPLACED_JOBS[name]}, and change the policy after the move"
                )
        elif not _is_replaced(name, command, contents.relations) and (found := dropped.search(command)):
            yield (
                f"the job {name!r} in observatory.jobs uses {found[0]}, which the community edition does not have. "
                "Remove the job, and add a policy after the move"
            )


def _existing(connection: psycopg.Connection, contents: Contents, gone: set[str]) -> Iterator[str]:
    """Yield what the files create although it exists, as where both files of a pair create the same table."""
    for each in contents.created:
        if each.name in gone:
            continue
        values = {"name": each.name, "table": each.name, "column": each.column}
        if connection.execute(_EXISTS[each.kind].encode(), values).fetchone() == (True,):
            what = f"the {each.kind} {each.name}{'.' if each.column else ''}{each.column}"
            yield (
                f"{each.place}: {what} exists already. Write the file so that it runs on the objects of its Apache "
                "variant: IF NOT EXISTS, OR REPLACE, or DROP first"
            )


def _contents(files: Sequence[Migration]) -> Contents:
    # Imported here: pglast is needed only where there is something to move.
    from observatory.database.migrations.created_objects import created, dropped  # noqa: PLC0415
    from observatory.database.migrations.statements import parse  # noqa: PLC0415

    contents = Contents()
    for migration in files:
        script = parse(migration)
        if not script.transactional:
            contents.outside_transaction.append(migration.file)
        for statement in script.statements:
            place = migration.place(statement.offset)
            contents.dropped |= dropped(statement)
            contents.created += [
                Created(kind=kind, name=name, column=column, place=place) for kind, name, column in created(statement)
            ]
    return contents
