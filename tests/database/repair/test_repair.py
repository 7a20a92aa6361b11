"""Repairs of the ledger: what each action changes, and the states that it is refused in."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from observatory.database import (
    LockHeldError,
    MigrationHistoryError,
    Repair,
    RepairAction,
    RepairRefusedError,
    StatementFailedError,
    plan_repair,
    repair_ledger,
    status,
)
from observatory.database.advisory_locks import LOCK_CLASS, MIGRATION_LOCK
from observatory.database.migrations.ledger import statements_digest
from tests.database.conftest import Deploy, WriteMigrations

HEADER = "-- transaction: false\n"
PRODUCT = {"_001_initial_schema": "SELECT 1;", "_002_add_hypertables": "SELECT 1;", "_003_create_indexes": "SELECT 1;"}

RunRepair = Callable[..., Repair]


@pytest.fixture
def repair(conninfo: str) -> RunRepair:
    """`repair_ledger`, of which the plan is made and compared first."""

    def run(migrations: Path, action: RepairAction, file: str) -> Repair:
        before = rows(conninfo)
        planned = plan_repair(conninfo, migrations=migrations, action=action, file=file)
        assert rows(conninfo) == before
        return now(migrations=migrations, action=action, file=file, planned=planned)

    now = partial(repair_ledger, conninfo, reason="a  test", actor="me", deployment_id="fix", lock_wait_s=0)
    return run


def rows(conninfo: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo) as connection:
        columns = "version, name, statements_done, statements_total, statement_running, note"
        return connection.execute(f"SELECT {columns} FROM observatory.schema_migrations ORDER BY 1".encode()).fetchall()


def execute(conninfo: str, sql: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(sql.encode())


def refused(conninfo: str, migrations: Path, action: RepairAction, file: str, message: str) -> None:
    """Both the plan and the repair are refused with exit code 3, and change nothing."""
    before = rows(conninfo)
    given = {"migrations": migrations, "action": action, "file": file}
    for run in (plan_repair, partial(repair_ledger, reason="r", actor="me", deployment_id="fix", lock_wait_s=0)):
        with pytest.raises(RepairRefusedError, match=message) as caught:
            run(conninfo, **given)  # type: ignore[arg-type]
        assert caught.value.exit_code == 3
    assert rows(conninfo) == before


@pytest.fixture
def interrupted(run_deploy: Deploy, write_migrations: WriteMigrations) -> Path:
    """A directory of two files, of which the second was interrupted after two of its three statements."""
    directory = write_migrations(
        _001_a="CREATE TABLE a (x int);", _002_b=f"{HEADER}SELECT 1;\nSELECT 2;\nSELECT missing;"
    )
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)
    return directory


def test_an_interrupted_file_is_forgotten_and_becomes_another(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, interrupted: Path, write_migrations: WriteMigrations
) -> None:
    done = repair(interrupted, "forget", "002_b.sql")

    assert done.before is not None
    assert done.before.startswith("002_b: 2 of 3 statements")
    assert (done.after, done.consider[0]) == (None, "statement 1 is done and stays in effect: SELECT 1")
    (interrupted / "002_b.sql").unlink()
    assert run_deploy(migrations=write_migrations(_002_other="SELECT 1;")).applied == ("002_other",)


def test_forgetting_drops_the_invalid_index_of_a_killed_deployment(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    build = "CREATE INDEX CONCURRENTLY a_x ON a (x)"
    directory = write_migrations(_001_a="CREATE TABLE a (x int);", _002_b=f"{HEADER}{build};")
    run_deploy(migrations=directory)
    execute(
        conninfo,
        "UPDATE observatory.schema_migrations SET statements_done = 0, statements_digest = "
        f"'{statements_digest([])}', statement_running = '{hashlib.sha256(build.encode()).hexdigest()}' "
        "WHERE version = 2; UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'a_x'::regclass",
    )

    done = repair(directory, "forget", "002_b")

    assert done.consider[0] == f"an invalid index that this statement left is dropped: {build}"
    assert [row[1] for row in rows(conninfo)] == ["001_a"]
    assert run_deploy(migrations=directory).applied == ("002_b",)


def test_what_was_applied_is_not_forgotten(conninfo: str, interrupted: Path) -> None:
    refused(conninfo, interrupted, "forget", "001_a.sql", r"001_a\.sql: is completely applied.* write a new migration")
    refused(conninfo, interrupted, "forget", "003_c.sql", r"no row of this name.*Interrupted files: 002_b\.sql")


def test_an_edit_of_white_space_is_accepted(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (x int);\nSELECT 1;")
    run_deploy(migrations=directory)
    write_migrations(_001_a="-- A table.\nCREATE TABLE a\n  (x int);\nSELECT 1; -- one\n")
    with pytest.raises(MigrationHistoryError, match=r"edited after it was applied.*--repair accept 001_a\.sql"):
        run_deploy(migrations=directory)

    assert repair(directory, "accept", "001_a.sql").consider == (
        "only names, comments or white space differ from what ran",
    )
    assert rows(conninfo) == [(1, "001_a", 2, 2, None, "accept by me: a test")]
    assert run_deploy(migrations=directory).applied == ()
    refused(conninfo, directory, "accept", "001_a.sql", "is as it was applied, so there is nothing to accept")


def test_an_accepted_edit_of_statements_lists_those_that_did_not_run(
    repair: RunRepair, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="SELECT 1;\nSELECT 2;\nSELECT 3;")
    run_deploy(migrations=directory)
    (directory / "001_a.sql").unlink()
    write_migrations(_001_better="SELECT 1;\nSELECT 20;")
    with pytest.raises(MigrationHistoryError, match=r"renamed after .*--repair accept 001_better\.sql"):
        run_deploy(migrations=directory)

    assert repair(directory, "accept", "001_better.sql").consider == (
        "001_better.sql:2:1: statement 2 is not the one that ran, and it does not run now",
        "1 statements that ran are not in the file any more; they stay in effect",
    )
    assert run_deploy(migrations=directory).applied == ()


def test_an_edit_of_finished_statements_of_an_interrupted_file_is_accepted(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, interrupted: Path, write_migrations: WriteMigrations
) -> None:
    refused(conninfo, interrupted, "accept", "002_b.sql", "its finished statements are as they ran")
    refused(conninfo, interrupted, "accept", "003_c.sql", "has no such file")
    write_migrations(_002_b=f"{HEADER}SELECT 1;")
    refused(conninfo, interrupted, "accept", "002_b.sql", "2 statements ran, but the file has 1")
    write_migrations(_002_b=f"{HEADER}SELECT  1;\nSELECT 2;\nSELECT 3;", _003_c="SELECT 1;")
    refused(conninfo, interrupted, "accept", "003_c.sql", "no row of this file, so there is no edit to accept")

    repair(interrupted, "accept", "002_b.sql")

    assert run_deploy(migrations=interrupted).applied == ("002_b", "003_c")


def test_a_file_that_was_run_by_hand_is_recorded_and_can_be_forgotten(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="SELECT 1;", _002_b="SELECT missing;\nSELECT 1;", _003_c="SELECT 1;")
    refused(conninfo_with_ledger(conninfo), directory, "applied", "002_b.sql", r"001_a\.sql comes before it")
    run_deploy(migrations=directory, target=1)

    assert repair(directory, "applied", "002_b.sql").before is None

    assert rows(conninfo)[1] == (2, "002_b", 2, 2, None, "applied by me: a test")
    refused(conninfo, directory, "applied", "002_b.sql", r"number 002 is in the ledger since .* \(2 of 2 statements\)")
    refused(conninfo, directory, "applied", "004_d.sql", "has no such file")
    repair(directory, "forget", "002_b.sql")
    repair(directory, "applied", "002_b.sql")
    assert run_deploy(migrations=directory).applied == ("003_c",)


def test_an_interrupted_file_that_was_finished_by_hand_is_recorded(
    repair: RunRepair, run_deploy: Deploy, interrupted: Path
) -> None:
    repair(interrupted, "applied", "002_b.sql")

    assert run_deploy(migrations=interrupted).version == 2


def conninfo_with_ledger(conninfo: str) -> str:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        from observatory.database.migrations import ledger  # noqa: PLC0415

        ledger.create(connection)
    return conninfo


@pytest.fixture
def own_below_500(conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations) -> Path:
    """An own 004 and 005, which an earlier release applied; the product's 004 came later."""
    directory = write_migrations(
        **PRODUCT, _004_continuous_aggregates="CREATE TABLE mine ();", _005_retention_policies="CREATE TABLE too ();"
    )
    run_deploy(migrations=directory)
    execute(
        conninfo,
        "UPDATE observatory.schema_migrations SET name = CASE version WHEN 4 THEN '004_mine' ELSE '005_too' END "
        "WHERE version > 3",
    )
    (directory / "004_continuous_aggregates.sql").rename(directory / "004_mine.sql")
    (directory / "005_retention_policies.sql").rename(directory / "005_too.sql")
    return write_migrations(_004_continuous_aggregates="CREATE TABLE product ();")


def test_own_migrations_are_moved_to_500_and_the_products_number_is_free(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, own_below_500: Path
) -> None:
    directory = own_below_500
    refused(conninfo, directory, "renumber", "005_too.sql", r"004_mine\.sql was applied before it. Move that one first")
    refused(conninfo, directory, "renumber", "001_initial_schema.sql", "is a migration of the product")

    first = repair(directory, "renumber", "004_mine.sql")
    repair(directory, "renumber", "005_too.sql")

    assert (first.after, first.consider) == (
        "500_mine: 1 of 1 statements",
        ("the file 004_mine.sql is renamed to 500_mine.sql; commit that",),
    )
    assert [row[:2] for row in rows(conninfo)][3:] == [(500, "500_mine"), (501, "501_too")]
    assert run_deploy(migrations=directory).applied == ("004_continuous_aggregates",)
    assert status(conninfo, migrations=directory).version == 501
    refused(conninfo, directory, "renumber", "500_mine.sql", "the number is allowed. To move it, rename the file first")


def test_a_file_that_has_its_new_number_already_is_moved(
    conninfo: str, repair: RunRepair, run_deploy: Deploy, own_below_500: Path, write_migrations: WriteMigrations
) -> None:
    """As on the second of two databases of one checkout."""
    directory = own_below_500
    (directory / "004_mine.sql").rename(directory / "500_mine.sql")
    (directory / "005_too.sql").rename(directory / "501_too.sql")
    text = (directory / "501_too.sql").read_text()
    write_migrations(_501_too="SELECT 'edited';")
    refused(conninfo, directory, "renumber", "501_too.sql", r"its text is not that of 005_too\.sql as it was applied")
    refused(conninfo, directory, "renumber", "502_new.sql", "neither the ledger nor the directory")
    write_migrations(_501_too=text, _502_new="SELECT 1;")
    refused(conninfo, directory, "renumber", "502_new.sql", "no applied file that is missing has this title")

    for file in ("501_too.sql", "004_mine.sql"):  # by the new name, or by the old one
        assert repair(directory, "renumber", file).consider == ()

    assert run_deploy(migrations=directory).applied == ("004_continuous_aggregates", "502_new")


def test_a_file_that_cannot_be_renamed_keeps_row_and_name(
    conninfo: str, repair: RunRepair, own_below_500: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(conninfo)

    def denied(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "004_mine.sql")

    monkeypatch.setattr(Path, "rename", denied)
    with pytest.raises(Exception, match=r"004_mine\.sql: cannot be renamed: Permission denied"):
        repair(own_below_500, "renumber", "004_mine.sql")

    assert rows(conninfo) == before


def test_a_repair_waits_for_a_deployment_and_is_that_of_its_plan(
    conninfo: str, repair: RunRepair, interrupted: Path
) -> None:
    planned = plan_repair(conninfo, migrations=interrupted, action="forget", file="002_b.sql")
    with psycopg.connect(conninfo, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, MIGRATION_LOCK.key])
        with pytest.raises(LockHeldError):
            repair(interrupted, "forget", "002_b.sql")
    execute(conninfo, "UPDATE observatory.schema_migrations SET statements_total = 4 WHERE version = 2")

    with pytest.raises(RepairRefusedError, match="changed meanwhile"):
        repair_ledger(
            conninfo,
            migrations=interrupted,
            action="forget",
            file="002_b.sql",
            reason="r",
            actor="me",
            deployment_id="fix",
            planned=planned,
        )
    assert len(rows(conninfo)) == 2
