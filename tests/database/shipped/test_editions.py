"""The two editions' files of 004 and 005: the same views, and a record of the features that an edition lacks.

Where the community edition is installed (OBSERVATORY_PG_PREFIX), its files are applied. Elsewhere they are parsed, and
each statement runs on the Apache edition, which must reject it only for its licence: so names, options and arguments
are those of this version of TimescaleDB.
"""

from collections.abc import Iterator
from typing import Any

import pglast
import psycopg
import pytest
from pglast import ast
from pglast.stream import RawStream

from observatory.database import EditionGap, check_syntax, edition_gaps, load_migrations
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations

LICENCE = 'not supported under the current "apache" license'
AGGREGATES = (
    *("llm_metrics_1min", "llm_metrics_1hour", "llm_metrics_1day"),
    *("llm_error_summary", "cost_analysis_hourly"),
)


@pytest.fixture
def connection(conninfo: str, run_deploy: Deploy) -> Iterator[psycopg.Connection]:
    run_deploy(migrations=SHIPPED)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield connection


def community_file(version: int) -> str:
    return load_migrations(SHIPPED, "community")[version - 1].sql


def definitions() -> dict[str, str]:
    """The query of each continuous aggregate."""
    nodes = [raw.stmt for raw in pglast.parse_sql(community_file(4))]
    views: list[Any] = [node for node in nodes if isinstance(node, ast.CreateTableAsStmt)]
    return {view.into.rel.relname: RawStream()(view.query) for view in views}


def columns(connection: psycopg.Connection, view: str) -> list[tuple[str, str]]:
    query = (
        "SELECT attname, format_type(atttypid, atttypmod) "
        "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
    )
    return connection.execute(query, [view]).fetchall()


def test_both_editions_can_be_parsed() -> None:
    for edition in ("apache", "community"):
        check_syntax(load_migrations(SHIPPED, edition))


@pytest.mark.parametrize("name", AGGREGATES)
def test_both_editions_define_the_same_aggregates(connection: psycopg.Connection, name: str) -> None:
    connection.execute(f"CREATE TEMPORARY VIEW community AS {definitions()[name]}".encode())

    assert columns(connection, "community") == columns(connection, name)
    query = "SELECT pg_get_viewdef(%s::regclass) = pg_get_viewdef(%s::regclass)"
    assert connection.execute(query, ["community", f"observatory.{name}_live"]).fetchone() == (True,)


@pytest.mark.parametrize("name", AGGREGATES)
def test_both_editions_refresh_the_same_window(connection: psycopg.Connection, name: str) -> None:
    window = "SELECT refresh_from, refresh_to FROM observatory.aggregates WHERE name = %s"
    row = connection.execute(window, [name]).fetchone()
    assert row is not None
    policies = [statement for statement in pglast.split(community_file(4)) if f"'{name}', start_offset" in statement]
    assert len(policies) == 1

    for offset, interval in zip(("start_offset", "end_offset"), row, strict=True):
        expected = policies[0].partition(f"{offset} => ")[2].partition(",")[0]
        assert connection.execute(f"SELECT {expected}".encode()).fetchone() == (interval,)


def test_both_editions_have_the_same_retention(connection: psycopg.Connection) -> None:
    jobs = connection.execute("SELECT command FROM observatory.jobs WHERE name LIKE 'retention of %'").fetchall()
    apache = {tuple(command.split("'")[1::2]) for (command,) in jobs}

    policies = [text for text in pglast.split(community_file(5)) if "add_retention_policy" in text]

    assert {(text.split("'")[1], text.split("'")[3]) for text in policies} == {
        (relation.rpartition(".")[2], kept) for relation, kept in apache
    }
    assert len(policies) == 8


def test_the_apache_edition_rejects_community_files_only_for_their_licence(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    run_deploy(migrations=SHIPPED, target=3)
    refused = []
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for statement in pglast.split(community_file(4)) + pglast.split(community_file(5)):
            try:
                connection.execute(statement.encode())
            except psycopg.errors.FeatureNotSupported as error:
                refused.append(str(error))
            for name in [name for name in AGGREGATES if statement.startswith(f"CREATE MATERIALIZED VIEW {name}")]:
                connection.execute(
                    f"CREATE VIEW {name} AS {definitions()[name]}".encode()
                )  # for the statements after it

    assert len(refused) == 5 + 5 + 3 + 3 + 8
    assert all(LICENCE in message for message in refused)


def test_the_gaps_of_the_apache_edition_are_recorded(connection: psycopg.Connection, conninfo: str) -> None:
    gaps = edition_gaps(conninfo)

    assert [gap.feature for gap in gaps] == ["compression", "continuous aggregates", "retention policies"]
    assert gaps[0] == EditionGap(
        feature="compression",
        replaced_by=None,
        consequence="Chunks of traces, metrics and logs older than 7 days stay as large as they were written",
    )


def test_there_are_no_gaps_before_the_migration_that_records_them(conninfo: str, run_deploy: Deploy) -> None:
    run_deploy(migrations=SHIPPED, target=3)

    assert edition_gaps(conninfo) == ()


@pytest.mark.community
def test_the_community_edition_has_policies_and_no_gaps(connection: psycopg.Connection, conninfo: str) -> None:
    query = "SELECT proc_name, count(*) FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL GROUP BY 1"

    assert dict(connection.execute(query).fetchall()) == {
        "policy_refresh_continuous_aggregate": 5,
        "policy_compression": 3,
        "policy_retention": 8,
    }
    assert edition_gaps(conninfo) == ()
