"""A contracting migration is refused while the release of a fleet needs the old schema, live or kept for a rollback."""

import psycopg
import pytest

from observatory.database import (
    ContractRefusedError,
    LintRefusedError,
    MigrationFileError,
    SchemaRequirement,
    plan,
    status,
)
from observatory.database.migrations.expand_contract import contracted_beyond, contracting
from observatory.database.migrations.files import read_migrations
from observatory.database.migrations.statements import parse
from tests.database.conftest import Deploy, WriteMigrations
from tests.database.test_migration_backup import Backups

CONTRACT = "-- Nobody reads it any more.\n-- phase: contract\nALTER TABLE a DROP COLUMN old;"
LIVE = SchemaRequirement(fleet="blue (live)", version="v0.5.0", schema_min=1, schema_max=2)
KEPT = SchemaRequirement(fleet="green (kept for rollback)", version="v0.4.0", schema_min=1, schema_max=1)


def test_a_contract_is_refused_while_a_fleet_needs_the_old_shape(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (old int);", _002_b=CONTRACT)

    with pytest.raises(ContractRefusedError) as refusal:
        run_deploy(migrations=directory, requirements=[LIVE, KEPT])

    assert str(refusal.value) == (
        "002_b.sql:1:1: removes what a release in use needs (green (kept for rollback): v0.4.0, up to "
        "schema 1). Nothing was changed. First deploy a release that supports schema 2 to both fleets"
    )
    assert status(conninfo).version == 0
    assert run_deploy(migrations=directory, requirements=[LIVE, LIVE._replace(fleet="green")]).version == 2


def test_expanding_unselected_and_applied_migrations_are_not_refused(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(
        _001_a="CREATE TABLE a (old int);", _002_b=CONTRACT, _003_c="-- phase: expand\nSELECT 1;"
    )

    assert run_deploy(migrations=directory, target=1, requirements=[KEPT]).version == 1
    assert run_deploy(migrations=directory, target=2, requirements=[LIVE]).version == 2
    assert run_deploy(migrations=directory, requirements=[KEPT]).version == 3


def test_the_applied_migrations_that_contract_are_named(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    run_deploy(migrations=write_migrations(_001_a="CREATE TABLE a (old int);", _002_b=CONTRACT, _003_c="SELECT 1;"))
    assert contracting(conninfo, (1, 2, 3)) == (2,)
    assert contracting(conninfo, (1, 3)) == ()
    assert (contracted_beyond(conninfo, 1), contracted_beyond(conninfo, 2)) == (2, None)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("-- phase: contrakt\nSELECT 1;", r"001_a\.sql:1:1: the phase header is 'contrakt'\. Write expand or contract"),
        ("SELECT 1;\n-- phase: contract\n", r"001_a\.sql:2:1: the phase header has no effect here"),
    ],
)
def test_an_unusable_phase_is_refused(write_migrations: WriteMigrations, sql: str, message: str) -> None:
    (migration,) = read_migrations(write_migrations(_001_a=sql))

    with pytest.raises(MigrationFileError, match=message):
        parse(migration)


def test_a_file_may_have_both_headers(write_migrations: WriteMigrations) -> None:
    (migration,) = read_migrations(write_migrations(_001_a="-- transaction: false\n-- phase: contract\nVACUUM;"))

    script = parse(migration)

    assert (script.transactional, script.phase) == (False, "contract")


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("ALTER TABLE a DROP COLUMN old;", "contract-without-header"),
        ("DO $$ BEGIN EXECUTE 'ALTER TABLE a DROP COLUMN old'; END $$;", "contract-without-header"),
        ("TRUNCATE observatory.schema_migrations;", "attacks-engine"),
        ("SELECT pg_advisory_unlock_all();", "attacks-engine"),
        ("CREATE TABLE b ();\nGRANT SELECT ON b TO app_a;", "grant-not-allowed"),
        ("CREATE TABLE b ();\n-- migrate:down\nDROP TABLE b;", "mark-of-another-tool"),
    ],
)
def test_plan_and_deployment_refuse_what_breaks_a_release_or_the_program(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, sql: str, rule: str
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (old int);")
    run_deploy(migrations=directory, requirements=[KEPT])
    write_migrations(_500_b=sql)
    backups = Backups()

    planned = plan(conninfo, migrations=directory, requirements=[LIVE, KEPT])
    with pytest.raises(LintRefusedError, match=rf"^500_b\.sql:.*\[{rule}\]") as refusal:
        run_deploy(migrations=directory, requirements=[LIVE, KEPT], backup=backups)

    assert planned.refusals == (str(refusal.value),)
    assert not planned.would_succeed
    assert refusal.value.exit_code == 3
    assert backups.calls == []
    with psycopg.connect(conninfo) as connection:
        assert connection.execute("SELECT old FROM a").fetchall() == []
    assert status(conninfo).version == 1


def test_what_an_own_migration_added_after_the_releases_may_go(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (old int);", _500_b="ALTER TABLE a ADD COLUMN mine int;")
    run_deploy(migrations=directory, requirements=[KEPT])
    write_migrations(_501_c="ALTER TABLE a DROP COLUMN mine;\nCREATE TABLE t ();\nDROP TABLE t;")

    assert run_deploy(migrations=directory, requirements=[LIVE, KEPT]).applied == ("501_c",)
