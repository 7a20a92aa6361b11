"""The product's migrations are 001 to 499, own ones start at 500; each range is applied in its own order."""

from pathlib import Path

import psycopg
import pytest

from observatory.database import MigrationFileError, MigrationHistoryError, plan, reached_version, status
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations


@pytest.fixture
def product(write_migrations: WriteMigrations) -> Path:
    """A directory with the names of the product's first migrations."""
    names = ("001_initial_schema", "002_add_hypertables", "003_create_indexes")
    return write_migrations(**{f"_{name}": "SELECT 1;" for name in names})


def test_a_migration_of_the_product_is_applied_after_an_own_one(
    run_deploy: Deploy, conninfo: str, product: Path, write_migrations: WriteMigrations
) -> None:
    write_migrations(_500_mine="CREATE TABLE mine ();")
    assert run_deploy(migrations=product).applied[-1] == "500_mine"

    assert reached_version(conninfo, 4) == 3, "a release that needs 004 has to wait for it"
    assert reached_version(conninfo, 500) == 500
    assert reached_version(conninfo, 4, pending=[4]) == 4

    write_migrations(_004_continuous_aggregates="SELECT 1;")
    assert status(conninfo, migrations=product).pending == ("004_continuous_aggregates",)
    done = run_deploy(migrations=product)

    assert (done.applied, done.version) == (("004_continuous_aggregates",), 500)
    assert run_deploy(migrations=product).applied == ()


def test_an_own_migration_does_not_run_below_an_applied_one(
    run_deploy: Deploy, product: Path, write_migrations: WriteMigrations
) -> None:
    write_migrations(_500_a="SELECT 1;")
    run_deploy(migrations=product)
    (product / "500_a.sql").rename(product / "501_a.sql")
    write_migrations(_500_b="SELECT 2;")

    message = r"501_a\.sql:1:1: this database has it applied as 500_a.*--repair renumber 501_a\.sql --reason TEXT"
    with pytest.raises(MigrationHistoryError, match=message):
        run_deploy(migrations=product)


def test_an_own_migration_below_500_that_is_not_applied_gets_its_name(
    run_deploy: Deploy, conninfo: str, product: Path, write_migrations: WriteMigrations
) -> None:
    write_migrations(_004_mine="SELECT 1;", _500_other="SELECT 1;")

    for refused in (run_deploy, lambda **given: plan(conninfo, **given), lambda **given: status(conninfo, **given)):
        with pytest.raises(MigrationFileError, match=r"Rename: name 004_mine\.sql 501_mine\.sql"):
            refused(migrations=product)


@pytest.mark.parametrize("product_needs_the_number", [False, True])
def test_an_own_migration_below_500_that_is_applied_is_moved_by_a_repair(
    run_deploy: Deploy,
    conninfo: str,
    product: Path,
    write_migrations: WriteMigrations,
    *,
    product_needs_the_number: bool,
) -> None:
    """Earlier releases accepted any number, and the product's 004 came later."""
    write_migrations(_004_continuous_aggregates="CREATE TABLE mine ();")
    run_deploy(migrations=product)
    with psycopg.connect(conninfo) as connection:
        connection.execute("UPDATE observatory.schema_migrations SET name = '004_mine' WHERE version = 4")
    (product / "004_continuous_aggregates.sql").rename(product / "004_mine.sql")
    if product_needs_the_number:
        write_migrations(_004_continuous_aggregates="SELECT 1;")

    for refused in (run_deploy, lambda **given: plan(conninfo, **given)):
        with pytest.raises(
            MigrationHistoryError,
            match=r"004_mine\.sql:1:1: is applied .*--repair renumber 004_mine\.sql --reason TEXT "
            r"\(004_mine\.sql becomes 500_mine\.sql\)",
        ):
            refused(migrations=product)

    (product / "004_mine.sql").rename(product / "500_mine.sql")
    with pytest.raises(
        MigrationHistoryError,
        match=r"500_mine\.sql:1:1: this database has it applied as 004_mine.*--repair renumber 500_mine\.sql",
    ):
        run_deploy(migrations=product)

    (product / "500_mine.sql").unlink()
    message = r"004_mine\.sql: .*the file is missing, and its number is for the product's.*renumber 500_mine\.sql"
    with pytest.raises(MigrationHistoryError, match=message):
        run_deploy(migrations=product)


def test_other_directories_have_no_numbers_of_the_product(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    assert run_deploy(migrations=write_migrations(_001_mine="SELECT 1;", _002_other="SELECT 1;")).version == 2
    assert SHIPPED.is_dir()
