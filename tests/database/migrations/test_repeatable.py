"""Repeatable migrations run after the numbered ones, and again when their text changes or what they made is gone."""

from pathlib import Path

import psycopg
import pytest

from observatory.database import (
    ContractRefusedError,
    MigrationFileError,
    SchemaRequirement,
    deploy,
    list_migrations,
    plan,
    status,
    verify,
    write_script,
)
from observatory.platforms.rehearsal import rehearsal_server
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.database.test_hand_script import run_psql
from tests.support.postgres import PostgresServer

TABLE = "CREATE TABLE a (id int, name text);"
VIEW = "CREATE OR REPLACE VIEW names AS SELECT name FROM a;"
FUNCTION = (
    "CREATE OR REPLACE FUNCTION size(of text, VARIADIC more int[], OUT found bigint) LANGUAGE sql "
    "AS $$ SELECT count(*) FROM names $$; COMMENT ON FUNCTION size IS 'size';"
)


def query(conninfo: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo) as connection:
        return connection.execute(sql.encode()).fetchall()


def test_changed_files_run_again_in_the_order_of_names(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=TABLE, R__b_size=FUNCTION, R__a_names=VIEW)
    first = run_deploy(migrations=directory)
    nothing = run_deploy(migrations=directory)
    write_migrations(R__a_names=VIEW.replace("name FROM", "name, id FROM"), _002_b="CREATE TABLE b ();")
    planned = plan(conninfo, migrations=directory)
    listed = list_migrations(conninfo, migrations=directory)
    second = run_deploy(migrations=directory)

    assert (first.applied, first.version) == (("001_a", "R__a_names", "R__b_size"), 1)
    assert nothing.applied == ()
    assert [each.file for each in planned.pending] == ["002_b.sql", "R__a_names.sql"]
    assert [(each.file, each.state) for each in listed.migrations] == [
        ("001_a.sql", "applied"),
        ("002_b.sql", "pending"),
        ("R__a_names.sql", "changed"),
        ("R__b_size.sql", "applied"),
    ]
    assert second.applied == ("002_b", "R__a_names")
    assert status(conninfo, migrations=directory).pending == ()
    history = query(conninfo, "SELECT name FROM observatory.repeatable_migrations ORDER BY applied_at")
    assert history == [("R__a_names",), ("R__b_size",), ("R__a_names",)]


def test_the_record_of_what_a_file_made_has_the_order_of_the_names(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    views = "".join(f"CREATE OR REPLACE VIEW v{number} AS SELECT 1 AS one;\n" for number in reversed(range(9)))
    functions = "".join(
        f"CREATE OR REPLACE FUNCTION f{number}() RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
        for number in reversed(range(9))
    )
    run_deploy(migrations=write_migrations(_001_a=TABLE, R__a=views + functions))

    [(made,)] = query(conninfo, "SELECT objects FROM observatory.repeatable_migrations")
    assert isinstance(made, list)
    assert [each["name"] for each in made] == [
        *[f"public.f{number}()" for number in range(9)],
        *[f"public.v{number}" for number in range(9)],
    ]


def test_two_files_that_make_the_same_objects_are_refused_with_the_first(
    conninfo: str, write_migrations: WriteMigrations
) -> None:
    views = "".join(f"CREATE OR REPLACE VIEW v{number} AS SELECT 1 AS one;\n" for number in (5, 3, 8, 1, 6, 2, 7, 4, 9))
    directory = write_migrations(_001_a=TABLE, R__a=views, R__b=views)
    with pytest.raises(MigrationFileError, match=r'makes the view "public"\."v5", which R__a\.sql makes too'):
        plan(conninfo, migrations=directory)


def test_what_a_numbered_file_drops_is_made_again(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=TABLE, R__a_names=VIEW, R__b_size=FUNCTION)
    run_deploy(migrations=directory)
    write_migrations(
        _002_b="-- lint-ignore changing-column-type: it is empty\n"
        "DROP VIEW names; ALTER TABLE a ALTER COLUMN name TYPE varchar(99);"
    )
    done = run_deploy(migrations=directory)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("DROP FUNCTION size(text, int[])")
    again = run_deploy(migrations=directory)

    assert done.applied == ("002_b", "R__a_names")
    assert again.applied == ("R__b_size",)


def test_with_a_lower_target_or_one_file_they_wait(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a=TABLE, _002_b="ALTER TABLE a ADD COLUMN b int;", R__v=VIEW)
    assert run_deploy(migrations=directory, target=1).applied == ("001_a",)
    assert run_deploy(migrations=directory, only="002_b.sql").applied == ("002_b",)
    assert run_deploy(migrations=directory).applied == ("R__v",)


def test_a_failed_one_changes_nothing_and_keeps_the_numbered_ones(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=TABLE, R__v=VIEW + "\nCREATE OR REPLACE VIEW w AS SELECT missing FROM a;")
    with pytest.raises(Exception, match=r'R__v\.sql:2:\d+: column "missing" does not exist'):
        run_deploy(migrations=directory)

    assert query(conninfo, "SELECT to_regclass('names') IS NULL") == [(True,)]
    assert status(conninfo).version == 1


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("CREATE VIEW v AS SELECT 1;", "1:1: CREATE without OR REPLACE fails when the file runs again"),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1 AS one;", "1:1: a temporary view ends with its session"),
        (VIEW + "\nCREATE TABLE b ();", "2:1: this statement is not allowed"),
        (VIEW + "\nDO $$ BEGIN NULL; END $$;", "2:1: this statement is not allowed"),
        (VIEW + "\nREVOKE SELECT ON names FROM postgres;", "2:1: this statement is not allowed"),
        (VIEW + "\nGRANT SELECT ON ALL TABLES IN SCHEMA public TO postgres;", "2:1: this statement is not allowed"),
        ("DROP VIEW names;\n" + VIEW, "1:1: DROP without IF EXISTS fails"),
        ("DROP VIEW IF EXISTS names CASCADE;\n" + VIEW, "1:1: CASCADE would drop what other files made"),
        (VIEW + "\nDROP VIEW IF EXISTS names;", "2:1: drops .*names.*, which the file does not create afterwards"),
        ("DROP TABLE IF EXISTS a;\n" + VIEW, "1:1: this DROP is not allowed"),
        ("COMMENT ON TABLE a IS 'a';", "1:1: makes no view, function or procedure"),
        ("-- transaction: false\n" + VIEW, "1:1: a repeatable migration is one transaction"),
        ("CREATE OR REPLACE VIEW other AS SELECT 1 AS one;", "which R__a.sql makes too"),
    ],
)
def test_what_must_not_run_again_is_refused_before_anything_is_touched(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, sql: str, message: str
) -> None:
    directory = write_migrations(_001_a=TABLE, R__b=sql, R__a="CREATE OR REPLACE VIEW other AS SELECT 1 AS one;")
    for refused in (lambda: run_deploy(migrations=directory), lambda: plan(conninfo, migrations=directory)):
        with pytest.raises(MigrationFileError, match=message) as error:
            refused()
        assert error.value.exit_code == 3
    assert status(conninfo).version == 0


@pytest.mark.parametrize("name", ["R__Bad.sql", "R__.sql", "R__a.community.sql", "R_a.sql", "r__a.sql"])
def test_unusable_names_are_refused(run_deploy: Deploy, write_migrations: WriteMigrations, name: str) -> None:
    directory = write_migrations(_001_a=TABLE)
    (directory / name).write_text(VIEW)
    with pytest.raises(MigrationFileError, match=r"not the name of a migration|has some variants"):
        run_deploy(migrations=directory)


def test_drop_and_create_changes_columns_of_a_view(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=TABLE, R__v=VIEW)
    run_deploy(migrations=directory)
    write_migrations(
        R__v="-- phase: contract\nDROP VIEW IF EXISTS names;\nCREATE OR REPLACE VIEW names AS SELECT id FROM a;"
    )
    older, current = (SchemaRequirement("blue", "v1", 0, newest) for newest in (0, 1))
    with pytest.raises(ContractRefusedError, match=r"R__v\.sql:1:1: removes what a release in use needs"):
        run_deploy(migrations=directory, requirements=[older])

    assert plan(conninfo, migrations=directory, requirements=[older]).refusals
    assert plan(conninfo, migrations=directory, requirements=[current]).refusals == ()
    assert run_deploy(migrations=directory, requirements=[current]).applied == ("R__v",)


def test_the_rehearsal_runs_them_on_their_predecessors(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, rootfs: Path
) -> None:
    directory = write_migrations(_001_a=TABLE, R__a_names=VIEW, R__b_size=FUNCTION)
    run_deploy(migrations=directory)
    write_migrations(R__b_size=FUNCTION.replace("count(*)", "count(missing)"))
    failed = plan(conninfo, migrations=directory, throwaway=rehearsal_server(rootfs))
    write_migrations(R__b_size=FUNCTION.replace("count(*)", "count(name)"))
    passed = plan(conninfo, migrations=directory, throwaway=rehearsal_server(rootfs))

    assert (failed.rehearsal, failed.would_succeed) == ("failed", False)
    assert "R__b_size.sql:1:" in failed.rehearsal_detail
    assert [each.file for each in passed.pending] == ["R__b_size.sql"]
    assert passed.rehearsal == "passed"
    assert all(statement.observed for statement in passed.pending[0].statements)


def test_the_rehearsal_has_what_they_made_before(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, rootfs: Path
) -> None:
    below = "DROP VIEW IF EXISTS names;\nCREATE OR REPLACE VIEW names AS SELECT name, id FROM a;"
    above = "CREATE OR REPLACE VIEW few AS SELECT * FROM names LIMIT 2;"
    directory = write_migrations(_001_a=TABLE, R__a_names=below, R__b_few=above)
    run_deploy(migrations=directory)

    def rehearsed(**files: str) -> tuple[str, str]:
        found = plan(conninfo, migrations=write_migrations(**files), throwaway=rehearsal_server(rootfs))
        return found.rehearsal, found.rehearsal_detail

    reordered = rehearsed(R__b_few="CREATE OR REPLACE VIEW few AS SELECT id, name FROM names;")
    numbered = "DROP VIEW few, names; ALTER TABLE a ALTER COLUMN name TYPE varchar;"
    again = rehearsed(R__b_few=above, _002_b=numbered)

    assert (reordered[0], again[0]) == ("failed", "passed")
    assert 'cannot change name of view column "name" to "id"' in reordered[1]


def test_verification_covers_them(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, tmp_path: Path
) -> None:
    directory = write_migrations(R__v="CREATE OR REPLACE VIEW keys AS SELECT id FROM users;")
    for file in SHIPPED.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    run_deploy(migrations=directory)

    def found() -> tuple[str, str, bool]:
        done = verify(conninfo, migrations=directory)
        [check] = [check for check in done.checks if check.name == "repeatable migrations"]
        return check.verdict, check.detail, any("keys" in each.name for each in done.warnings if each.kind == "view")

    clean = found()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE OR REPLACE VIEW keys AS SELECT upper(id) AS id FROM users")
    by_hand = found()
    (directory / "R__v.sql").unlink()
    removed = found()
    planned = plan(conninfo, migrations=directory)
    listed = list_migrations(conninfo, migrations=directory)

    assert clean == ("passed", "1 as expected", False)
    assert by_hand[0] == "failed"
    assert "view public.keys is not as R__v.sql made it" in by_hand[1]
    assert removed == ("passed", "0 as expected; R__v.sql is no longer in the directory, and what it made stays", True)
    assert planned.removed == ("R__v.sql",)
    assert listed.migrations[-1].state == "removed"


def test_the_script_for_psql_has_them(
    postgres: PostgresServer, conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=TABLE, R__a_names=VIEW, R__b_size=FUNCTION)
    done = run_psql(postgres, conninfo, write_script(conninfo, migrations=directory).sql)
    assert done.returncode == 0, done.stderr
    with postgres.fresh_database() as name:
        deployed = postgres.conninfo(dbname=name)
        deploy(deployed, migrations=directory, actor="tester", deployment_id="test")
        rows = "SELECT name, sha256, source, objects FROM observatory.repeatable_migrations ORDER BY name"
        assert query(conninfo, rows) == query(deployed, rows)

    assert run_deploy(migrations=directory).applied == ()
    write_migrations(R__a_names=VIEW + "-- changed")
    again = write_script(conninfo, migrations=directory)
    assert again.files == ("R__a_names.sql",)
    assert run_psql(postgres, conninfo, again.sql).returncode == 0
    assert run_deploy(migrations=directory).applied == ()
