"""`observatory deploy database` on a real stack: plan, backup, deployment, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from components.schema import SchemaProvider
from observatory.backups.pgbackrest import PgBackRest
from observatory.documents.journal import entries
from tests.stack.test_backups import backup_lock
from tests.stack.test_monitoring import sandbox
from tests.support.checkout import Checkout


@pytest.fixture
def migration(stack: Checkout) -> Iterator[Path]:
    """The next migration, which makes a table; it and its table are gone afterwards."""
    directory = stack.root / "migrations"
    number = max(499, *(int(file.name.split("_")[0]) for file in directory.glob("*.sql"))) + 1
    file = directory / f"{number:03d}_try.sql"
    file.write_text("CREATE TABLE try (id bigint PRIMARY KEY, account text REFERENCES users);\n")
    yield file
    file.unlink()
    with psycopg.connect(owner(stack)) as connection:
        connection.execute("DROP TABLE IF EXISTS try")
        connection.execute("ALTER TABLE users DROP COLUMN IF EXISTS try")
        connection.execute("DELETE FROM observatory.schema_migrations WHERE name = %s", [file.stem])


@pytest.fixture
def always_new(stack: Checkout) -> Iterator[None]:
    """A backup before each deployment, however young the last one is."""
    settings = stack.root / "Pulumi.local.yaml"
    before = settings.read_text()
    stack.configure(backups={"reuse_minutes": 0})
    yield
    settings.write_text(before)


def owner(stack: Checkout) -> str:
    return make_conninfo(stack.output("admin_database_url"), dbname="observatory", user="migrator")


def tool(stack: Checkout) -> PgBackRest:
    return PgBackRest(sandbox(stack))


def tables(stack: Checkout) -> set[str]:
    with psycopg.connect(owner(stack)) as connection:
        return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_backup_plan_preview_and_deployment(stack: Checkout, migration: Path) -> None:
    alone = stack.json("deploy", "database", "--backup-only")
    newest = {each.repository: each.label for each in tool(stack).info()}
    assert alone["backup_labels"] == {str(repository): label for repository, label in newest.items()}
    assert alone["backup_label"] == newest[1]
    plan = stack.json("deploy", "database", "--dry-run", "--migration", str(migration))
    assert [each["file"] for each in plan["pending"]] == [migration.name]
    [statement] = plan["pending"][0]["statements"]
    assert statement["lock"] == {"mode": "SHARE ROW EXCLUSIVE", "relation": "users"}
    assert (plan["rehearsal"], plan["would_succeed"]) == ("passed", True)
    assert plan["backup"]["kind"] == "reuse"
    assert plan["backup"]["label"] in newest.values()

    steps = stack.json("preview", "--engine", "embedded")["steps"]
    [previewed] = [step["schema_plan"] for step in steps if "schema_plan" in step]
    assert without_sizes(previewed) == without_sizes(plan)
    assert "SHARE ROW EXCLUSIVE on users" in stack.run("preview", "--engine", "embedded").stdout
    assert "try" not in tables(stack)

    # Its rehearsal is the catalogue of a file that the test has made up.
    done = stack.json("deploy", "database", "--migration", migration.name, "--retry", "1")
    assert done["applied"] == [migration.stem]
    assert (done["verification"]["passed"], done["verification"]["drift"]) == (True, [])
    assert done["backup_label"] in newest.values()
    assert "try" in tables(stack)
    nothing = stack.json("deploy", "database")
    assert (nothing["applied"], nothing["verification"]["passed"]) == ([], True)


def without_sizes(plan: dict[str, Any]) -> dict[str, Any]:
    """Leave only the names of the sizes, which an automatic ANALYZE changes between two plans."""
    return {**plan, "sizes": sorted(plan["sizes"])}


def test_the_schema_is_verified_and_missing_objects_are_named(stack: Checkout) -> None:
    assert "Verified: version" in stack.run("deploy", "database", "--verify-only").stdout
    with psycopg.connect(owner(stack)) as connection:
        connection.execute("ALTER INDEX projects_owner RENAME TO hidden")
    try:
        found = stack.json("deploy", "database", "--verify-only", expect=1)
    finally:
        with psycopg.connect(owner(stack)) as connection:
            connection.execute("ALTER INDEX hidden RENAME TO projects_owner")
    [failed] = [check for check in found["checks"] if check["verdict"] != "passed"]
    assert "projects_owner is missing" in failed["detail"]


@pytest.mark.usefixtures("always_new")
def test_a_failed_backup_stops_the_migration(stack: Checkout, migration: Path) -> None:
    with backup_lock(stack):
        refused = stack.json("deploy", "database", expect=1)
    assert refused["error"]["kind"] == "BackupFailedError"
    assert "another backup is running" in refused["error"]["message"]
    assert "try" not in tables(stack)


@pytest.fixture
def drill_required(stack: Checkout) -> Iterator[None]:
    """Migrations need a restore drill, and no receipt of one is there."""
    settings, receipts = stack.root / "Pulumi.local.yaml", stack.home / "data/receipts"
    before, aside = settings.read_text(), stack.home / "data/receipts-aside"
    receipts.mkdir(exist_ok=True)
    receipts.rename(aside)
    stack.configure(backups={"require_drill_days": 7})
    yield
    settings.write_text(before)
    shutil.rmtree(receipts, ignore_errors=True)
    aside.rename(receipts)


@pytest.mark.usefixtures("drill_required")
def test_a_migration_without_the_required_restore_drill_is_refused(stack: Checkout, migration: Path) -> None:
    refused = stack.json("deploy", "database", expect=3)
    assert refused["error"]["kind"] == "DrillRequiredError"
    assert "no restore drill of this database has ended" in refused["error"]["message"]
    assert "Run `observatory backup restore-test`" in refused["error"]["message"]
    [reason] = stack.json("deploy", "database", "--dry-run", expect=3)["refusals"]
    assert "backups.require_drill_days" in reason
    assert "try" not in tables(stack)


@pytest.mark.usefixtures("always_new")
def test_a_damaged_backup_stops_the_migration(stack: Checkout, migration: Path) -> None:
    full = [each for each in tool(stack).info(1) if each.type == "full"][-1]
    bundle = stack.home / "data/backups/backup/observatory" / full.label / "bundle/1"
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[:100] + b"damaged" + whole[107:])
    try:
        refused = stack.json("deploy", "database", expect=1)
    finally:
        bundle.write_bytes(whole)
    assert "verification of the backup" in refused["error"]["message"]
    assert "try" not in tables(stack)


def test_files_that_contradict_the_ledger_are_refused_and_wrong_usage_is_reported(stack: Checkout) -> None:
    file = stack.root / "migrations/003_create_indexes.sql"
    text = file.read_text()
    file.write_text(text + "SELECT 1;\n")
    try:
        refused = stack.json("deploy", "database", expect=3)
    finally:
        file.write_text(text)
    assert refused["error"]["kind"] == "MigrationHistoryError"
    assert f"{file.name}:{text.count(chr(10)) + 1}:1: was edited" in refused["error"]["message"]
    assert (
        "this edition has no such migration" in stack.run("deploy", "database", "--migration", "9.sql", expect=3).stderr
    )
    stack.run("deploy", "database", "--dry-run", "--backup-only", expect=2)
    stack.run("deploy", "database", "--verify-only", "--migration", file.name, expect=2)


def test_a_repair_is_recorded_in_the_journal_and_the_audit_of_the_database(stack: Checkout, migration: Path) -> None:
    migration.write_text("-- transaction: false\nSELECT 1;\nSELECT 1 / 0;\n")
    stack.json("deploy", "database", expect=1)
    forget = ("deploy", "database", "--repair", "forget", migration.name)

    planned = stack.json(*forget, "--dry-run")
    done = stack.json(*forget, "--reason", "it divides by zero", "--yes")

    assert (planned["before"], planned["after"], planned["repaired"]) == (done["before"], None, False)
    assert done["before"].startswith(f"{migration.stem}: 1 of 2 statements")
    assert stack.json(*forget, "--reason", "again", "--yes", expect=3)["error"]["kind"] == "RepairRefusedError"
    with psycopg.connect(stack.output("admin_database_url"), dbname="observatory") as connection:
        audited = connection.execute(
            "SELECT event, details ->> 'reason' FROM audit.entries WHERE event ~ 'ledger-repair' ORDER BY at"
        ).fetchall()
    assert audited == [(event, "it divides by zero") for event in ("ledger-repair-started", "ledger-repaired")]
    journal = list(entries(stack.root / ".observatory/rollout/local.journal.jsonl"))
    assert [each.details["before"] for each in journal if each.event == "ledger-repaired"] == [done["before"]]


def test_an_apache_stack_reports_what_the_community_edition_needs(stack: Checkout) -> None:
    backups = tool(stack).info()
    for more in (["--yes"], ["--dry-run"]):
        refused = stack.json("deploy", "database", "--edition", "community", *more, expect=3)
        assert refused["error"]["kind"] == "EditionRefusedError"
        assert "Install the community edition of the same version" in refused["error"]["message"]
    stack.run("deploy", "database", "--edition", "apache", expect=2)
    stack.run("deploy", "database", "--edition", "community", "--backup-only", expect=2)
    assert tool(stack).info() == backups


def test_the_resource_backs_up_before_pending_migrations_too(stack: Checkout, migration: Path) -> None:
    """By its provider alone: this release of the service is not ready on a schema that it does not know.

    Afterwards the pooler has new connections, so that a statement that was prepared before fits the changed table.
    """
    before = len(tool(stack).info())
    migration.write_text(f"{migration.read_text()}ALTER TABLE users ADD COLUMN try text;\n")
    props = {
        "conninfo": owner(stack),
        "directory": str(migration.parent),
        "migrations": [],
        "backup_home": str(stack.home),
        "backup_rootfs": str(sandbox(stack).rootfs),
        "pooler_port": stack.ports()["pgbouncer"],
    }
    with psycopg.connect(stack.output("database_url"), autocommit=True) as client:

        def columns() -> set[str]:
            return {each.name for each in client.execute("SELECT * FROM users", prepare=True).description or ()}

        assert "try" not in columns()
        SchemaProvider().update("schema", props, props)
        assert "try" in tables(stack) & columns()
    after = tool(stack).info()
    assert len(after) == before + 1
    with psycopg.connect(owner(stack)) as connection:
        ledger = "SELECT backup_label FROM observatory.schema_migrations WHERE name = %s"
        assert connection.execute(ledger, [migration.stem]).fetchone() == (after[-1].label,)


def test_a_stack_that_was_never_up_has_no_database(checkout: Checkout) -> None:
    assert "`observatory up`" in checkout.run("deploy", "database", expect=3).stderr
