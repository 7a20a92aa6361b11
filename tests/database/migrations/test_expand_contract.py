"""A contracting migration is refused while the release of a fleet needs the old schema, live or kept for a rollback."""

import pytest

from observatory.database import ContractRefusedError, MigrationFileError, SchemaRequirement, status
from observatory.database.migrations.files import read_migrations
from observatory.database.migrations.statements import parse
from tests.database.conftest import Deploy, WriteMigrations

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
