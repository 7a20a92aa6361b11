"""Replicas on throwaway servers: kept data, and the objects of own migrations, which they are the catalogue of."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest

from observatory.database import Deployment, Templates, Throwaway, plan, replica, verify
from observatory.database.migrations.files import Migration
from observatory.database.rehearsal_origin import Origin
from observatory.database.throwaway_templates import KEPT, Template
from observatory.platforms.rehearsal import rehearsal_server
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.support.postgres import PostgresServer

OWN = """
CREATE SCHEMA own;
CREATE TABLE own.feedback (trace_id text NOT NULL, score int CHECK (score > 0));
ALTER TABLE users ADD COLUMN phone text;
CREATE FUNCTION own.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
CREATE TRIGGER stamped BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION own.stamp();
"""


@pytest.fixture
def throwaway(rootfs: Path, tmp_path: Path) -> Throwaway:
    return replace(rehearsal_server(rootfs), templates=Templates(directory=tmp_path / "kept"))


def refuse_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(Throwaway, "__call__", refuse)


def test_own_migrations_are_verified_with_what_their_rehearsal_made(
    run_deploy: Deploy, conninfo: str, tmp_path: Path, throwaway: Throwaway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `make catalogue`, and without a server where the plan had one."""
    directory = tmp_path / "migrations"
    directory.mkdir()
    for file in sorted(SHIPPED.glob("*.sql"))[:3]:
        shutil.copy(file, directory)
    run_deploy(migrations=directory)
    (directory / "500_own.sql").write_text(OWN)
    assert plan(conninfo, migrations=directory, throwaway=throwaway).rehearsal == "passed"
    run_deploy(migrations=directory)
    with monkeypatch.context() as patched:
        refuse_servers(patched)
        whole = verify(conninfo, migrations=directory, throwaway=throwaway, service_conninfo=conninfo)
        with psycopg.connect(conninfo) as connection:
            connection.execute("ALTER TABLE users DISABLE TRIGGER stamped")
            connection.execute("ALTER TABLE own.feedback DROP COLUMN score")
            connection.execute("CREATE TABLE own.by_hand ()")
        drifted = verify(conninfo, migrations=directory, throwaway=throwaway, service_conninfo=conninfo)
    assert [str(each) for each in whole.problems] == []
    assert whole.drift == ()
    assert [(each.difference, each.kind, each.name) for each in drifted.drift] == [
        ("missing", "column", "own.feedback.score"),
        ("missing", "constraint", "own.feedback.feedback_score_check"),
        ("added", "table", "own.by_hand"),
        ("changed", "trigger", "public.users.stamped"),
    ]

    alone = verify(conninfo, migrations=directory, service_conninfo=conninfo)
    assert [(each.name, each.verdict) for each in alone.problems] == [("objects", "unknown")]
    assert "reads as the service" in {each.name for each in alone.checks}
    for file in (tmp_path / "kept").glob("*.json"):
        file.unlink()
    again = verify(conninfo, migrations=directory, throwaway=throwaway, service_conninfo=conninfo)
    assert again == drifted


def test_a_plan_starts_from_the_kept_data_of_an_earlier_one_unless_it_is_damaged(
    run_deploy: partial[Deployment],
    write_migrations: WriteMigrations,
    throwaway: Throwaway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conninfo = run_deploy.args[0]
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="ALTER TABLE a ADD x int;")
    replayed: list[str] = []
    original = replica._replay

    def replay(origin: Origin, files: Sequence[Migration], admin: str) -> None:
        replayed.append(admin)
        original(origin, files, admin)

    monkeypatch.setattr(replica, "_replay", replay)

    plans = [plan(conninfo, migrations=directory, throwaway=throwaway) for _ in range(2)]
    kept = sorted((tmp_path / "kept").glob("*.tar"))
    assert ([each.rehearsal for each in plans], len(replayed), len(kept)) == (["passed", "passed"], 1, 2)
    assert plans[0] == plans[1]

    newest = max(kept, key=lambda file: file.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size // 2)
    assert plan(conninfo, migrations=directory, throwaway=throwaway) == plans[0]
    assert len(replayed) == 2


def test_the_kept_data_is_bounded_and_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    templates = Templates(directory=tmp_path)
    left = tmp_path / ".a.tar.999999999-0.partial"
    left.write_bytes(b"half")
    for number in range(KEPT + 3):
        template = Template(key=f"key{number}", prepare=lambda _conninfo: None)
        templates.save(template, ["printf", "data"])
        os.utime(tmp_path / f"key{number}.tar", (number, number))
    templates.save(Template(key="failed", prepare=lambda _conninfo: None), ["false"])

    newest = range(3, KEPT + 3)  # a save keeps its own and the last used ones before it
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"key{number}.tar" for number in newest)


def test_the_replica_has_what_the_server_has(
    conninfo: str, postgres: PostgresServer, write_migrations: WriteMigrations, throwaway: Throwaway
) -> None:
    """Roles and their memberships, settings of the database, extensions, pg_cron, and the database's name."""
    name = conninfo.split("dbname=")[1]
    with postgres.superuser(name) as admin:
        admin.execute(
            "CREATE ROLE reporting; CREATE ROLE analysts; GRANT reporting TO analysts; CREATE EXTENSION btree_gist"
        )
        admin.execute(f"ALTER DATABASE {name} SET search_path = own, public".encode())
    try:
        directory = write_migrations(
            _001_a=f"""
            CREATE TABLE a (x int, EXCLUDE USING gist (x WITH =));
            GRANT SELECT ON a TO reporting;
            SELECT cron.schedule('nightly', '0 3 * * *', 'ANALYZE a');
            ALTER DATABASE {name} SET work_mem = '8MB';
            DO $$ BEGIN
                ASSERT pg_has_role('analysts', 'reporting', 'MEMBER');
                ASSERT (SELECT setconfig FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase
                        WHERE datname = current_database() AND setrole = 0)::text LIKE '%own, public%';
            END $$;
            """
        )
        planned = plan(conninfo, migrations=directory, throwaway=throwaway)
    finally:
        with postgres.superuser() as admin:
            admin.execute("DROP ROLE analysts; DROP ROLE reporting")
    assert (planned.rehearsal, planned.rehearsal_detail) == ("passed", "every statement ran on empty tables")


def test_a_rehearsal_starts_from_a_copy_of_the_schema_where_the_applied_files_do_not_make_it(
    run_deploy: partial[Deployment], write_migrations: WriteMigrations, throwaway: Throwaway
) -> None:
    """An applied file needs a table that was made by hand. Hypertables of the copy are hypertables."""
    conninfo = run_deploy.args[0]
    with psycopg.connect(conninfo) as connection:
        connection.execute("CREATE TABLE by_hand (id int)")
    directory = write_migrations(
        _001_a="CREATE TABLE a (ts timestamptz NOT NULL);\nSELECT create_hypertable('a', by_range('ts'));\n"
        "ALTER TABLE by_hand ADD COLUMN x int;\nINSERT INTO a VALUES ('2026-01-01');"
    )
    run_deploy(migrations=directory)
    write_migrations(_002_b="ALTER TABLE by_hand ADD y int;\nSELECT add_dimension('a', by_range('ts2'));")
    wrong = plan(conninfo, migrations=directory, throwaway=throwaway)
    write_migrations(_002_b="ALTER TABLE by_hand ADD y int;\nSELECT set_chunk_time_interval('a', INTERVAL '1 hour');")
    planned = plan(conninfo, migrations=directory, throwaway=throwaway)

    assert (wrong.rehearsal, wrong.rehearsal_detail.partition(";")[0].startswith("002_b.sql:2:")) == ("failed", True)
    assert planned.rehearsal == "passed"
    why = "it started from a copy of the database's schema, because with the applied files alone: "
    assert planned.rehearsal_detail.startswith(f"every statement ran on empty tables; {why}")
    assert '001_a.sql:1:1: relation "by_hand" does not exist' in planned.rehearsal_detail
    assert planned.rehearsal_detail.endswith(". A verification cannot check the objects of 002_b.sql")
