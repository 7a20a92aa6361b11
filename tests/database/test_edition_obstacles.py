"""What would stop the move to the community edition is found beforehand, on a database of the Apache edition."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from observatory.database.edition_obstacles import REPLACED_JOBS, find_obstacles, own_jobs
from observatory.database.migrations.files import Migration, load_migrations
from tests.database.conftest import SHIPPED, Deploy

OWN_AGGREGATE = """
    CREATE VIEW observatory.own_live AS SELECT time_bucket(INTERVAL '1 day', ts) AS bucket, count(*) AS n
        FROM llm_traces GROUP BY 1;
    CREATE TABLE observatory.own AS TABLE observatory.own_live WITH NO DATA;
    CREATE VIEW own AS TABLE observatory.own;
    INSERT INTO observatory.aggregates (name, bucket, refresh_from, refresh_to) VALUES
        ('own', '1 day', '3 days', '1 day');
    INSERT INTO observatory.jobs VALUES
        ('refresh own', '9 * * * *', $$CALL observatory.refresh_aggregate('own')$$),
        ('retention of own', '8 * * * *', $$CALL observatory.drop_old_chunks('observatory.own', INTERVAL '9 days')$$);
"""
OWN_COMMUNITY = """
    CREATE MATERIALIZED VIEW own WITH (timescaledb.continuous) AS
        SELECT time_bucket(INTERVAL '1 day', ts) AS bucket, count(*) AS n FROM llm_traces GROUP BY 1 WITH NO DATA;
"""
TRACE = """
    INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code)
    VALUES (now() - INTERVAL '3 days', 't', 's', 'chat', 'openai', 'gpt-4', 'text', 5, 'OK')
"""
KEPT = ("own cleanup", "7 * * * *", "DELETE FROM llm_logs WHERE false")


@pytest.fixture
def connection(conninfo: str, run_deploy: Deploy) -> Iterator[psycopg.Connection]:
    run_deploy(migrations=SHIPPED)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield connection


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the shipped files, for files of one's own."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "migrations"))


def community(directory: Path) -> list[Migration]:
    return [each for each in load_migrations(directory, "community") if each.variant == "community"]


def test_the_product_alone_has_no_obstacle_and_its_jobs_are_replaced(connection: psycopg.Connection) -> None:
    found = connection.execute("SELECT name, schedule, command FROM observatory.jobs").fetchall()
    connection.execute(TRACE)
    connection.execute("CALL observatory.refresh_aggregate('llm_metrics_1day', now() - INTERVAL '9 days', now())")
    assert connection.execute("SELECT count(*) FROM llm_metrics_1day").fetchone() == (1,)  # so it has a chunk
    assert {name: (schedule, command) for name, schedule, command in found} == REPLACED_JOBS
    assert find_obstacles(connection, community(SHIPPED)) == ()
    assert own_jobs(connection, community(SHIPPED)) == []


def test_own_jobs_are_kept_and_those_that_would_break_are_named(connection: psycopg.Connection) -> None:
    broken = ("own retention", "6 * * * *", "CALL observatory.drop_old_chunks('public.own', INTERVAL '3 days')")
    reading = ("own report", "5 * * * *", "SELECT count(*) FROM observatory.llm_metrics_1day")
    for job in (KEPT, broken, reading):
        connection.execute("INSERT INTO observatory.jobs VALUES (%s, %s, %s)", job)
    changed = (
        "UPDATE observatory.jobs SET command = replace(command, '90', '30') WHERE name = 'retention of llm_traces'"
    )
    connection.execute(changed.encode())

    assert KEPT in own_jobs(connection, community(SHIPPED))
    of_report, of_retention, of_change = find_obstacles(connection, community(SHIPPED))
    assert of_report.startswith("the job 'own report' in observatory.jobs uses observatory.llm_metrics_1day")
    assert of_retention.startswith("the job 'own retention' in observatory.jobs uses drop_old_chunks")
    assert of_change.startswith("the job 'retention of llm_traces' in observatory.jobs was changed")


def test_objects_that_depend_on_what_is_dropped_are_named(connection: psycopg.Connection) -> None:
    connection.execute("CREATE VIEW daily AS SELECT * FROM llm_metrics_1day")
    connection.execute("CREATE VIEW weekly AS SELECT * FROM daily")  # depends on no dropped object itself
    connection.execute("CREATE FUNCTION own_day(day llm_metrics_1day) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    connection.execute("CREATE TABLE runs (job text REFERENCES observatory.jobs)")
    connection.execute(
        "CREATE TRIGGER own_trigger BEFORE UPDATE ON observatory.jobs"
        " FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    )
    found = "\n".join(find_obstacles(connection, community(SHIPPED)))
    assert "view daily depends on view llm_metrics_1day. Drop it, and create it again after the move" in found
    assert "function own_day(llm_metrics_1day) depends on type llm_metrics_1day" in found
    assert "constraint runs_job_fkey on table runs depends on table observatory.jobs" in found
    assert "trigger own_trigger is on observatory.jobs" in found
    assert "weekly" not in found


def test_an_own_aggregate_needs_a_file_of_the_community_edition(connection: psycopg.Connection, own: Path) -> None:
    connection.execute(OWN_AGGREGATE.encode())
    found = find_obstacles(connection, community(own))
    assert found[0].startswith("the aggregate own is in observatory.aggregates, but no file of the community edition")
    assert [line.split(" in ")[0] for line in found[1:]] == ["the job 'refresh own'", "the job 'retention of own'"]

    (own / "500_own.community.sql").write_text(OWN_COMMUNITY)
    (own / "500_own.apache.sql").write_text(OWN_AGGREGATE)
    connection.execute("INSERT INTO observatory.jobs VALUES (%s, %s, %s)", KEPT)
    assert find_obstacles(connection, community(own)) == ()
    assert own_jobs(connection, community(own)) == [KEPT]  # policies of the file replace the other two


def test_an_own_pair_whose_objects_exist_is_named_by_place(connection: psycopg.Connection, own: Path) -> None:
    apache = (
        "CREATE TABLE orders (id int); CREATE INDEX orders_id ON orders (id); ALTER TABLE users ADD COLUMN phone text;"
        "CREATE FUNCTION priced() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TYPE color AS ENUM ('red');"
        "CREATE SCHEMA shop; CREATE TABLE again (id int);"
    )
    connection.execute(apache.encode())
    (own / "500_own.apache.sql").write_text(apache)
    lines = [line.strip() + ";" for line in apache.split(";") if line.strip()]
    text = "\n".join(["DROP TABLE again;", *lines, "CREATE TABLE IF NOT EXISTS orders (id int);"])
    (own / "500_own.community.sql").write_text(text)

    found = find_obstacles(connection, community(own))
    assert [line.split(" exists already")[0] for line in found] == [
        "500_own.community.sql:2:1: the relation public.orders",
        "500_own.community.sql:3:1: the relation public.orders_id",
        "500_own.community.sql:4:1: the column public.users.phone",
        "500_own.community.sql:5:1: the function public.priced",
        "500_own.community.sql:6:1: the type public.color",
        "500_own.community.sql:7:1: the schema shop",
    ]

    (own / "500_own.community.sql").write_text("-- transaction: false\nVACUUM users;")
    [outside] = find_obstacles(connection, community(own))
    assert outside.startswith("500_own.community.sql has the header `-- transaction: false`, and the move is one")
