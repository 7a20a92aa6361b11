import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from pulumi.dynamic.dynamic import serialize_provider

from components.schema import SchemaProvider
from observatory.database import (
    ContractRefusedError,
    MigrationHistoryError,
    UnsuitableServerError,
    VerificationFailedError,
    read_migrations,
    read_repeatables,
    status,
)
from observatory.database.errors import DatabaseDroppedError, DrillRequiredError
from observatory.engines.embedded import StackOptions, up
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import pgbackrest_files
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings
from tests.support.postgres import PostgresServer

SHIPPED = Path(__file__).parents[2] / "migrations"


@pytest.fixture
def conninfo(postgres: PostgresServer, fresh_database: str) -> str:
    return postgres.conninfo(dbname=fresh_database)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "migrations"
    directory.mkdir()
    for migration in read_migrations(SHIPPED)[:3]:  # without jobs, which need pg_cron
        shutil.copy(migration.path, directory)
    return directory


def inputs(conninfo: str, directory: Path, **others: Any) -> dict[str, Any]:
    """What the engine hands to the provider for such a resource."""
    files = (*read_migrations(directory), *read_repeatables(directory))
    migrations = [f"{migration.path.stem} {migration.sha256[:12]}" for migration in files]
    return {"conninfo": conninfo, "directory": str(directory), "migrations": migrations, **others}


def test_create_applies_and_another_run_finds_no_difference(conninfo: str, directory: Path) -> None:
    props = inputs(conninfo, directory)

    created = SchemaProvider().create(props)

    assert created.outs is not None
    assert (created.outs["version"], created.outs["edition"]) == (3, "apache")
    assert created.outs["applied"] == props["migrations"]
    assert SchemaProvider().diff(created.id, created.outs, props).changes is False


def test_create_adopts_a_database_that_was_migrated_before(conninfo: str, directory: Path) -> None:
    first = SchemaProvider().create(inputs(conninfo, directory))

    assert SchemaProvider().create(inputs(conninfo, directory)).outs == first.outs


def test_a_new_file_is_a_difference_and_update_applies_it(conninfo: str, directory: Path) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    (directory / "500_more.sql").write_text("CREATE TABLE more ();")
    news = inputs(conninfo, directory)

    assert SchemaProvider().diff("schema", outs, news).changes is True
    updated = SchemaProvider().update("schema", outs, news).outs
    assert updated is not None
    assert updated["version"] == 500
    assert SchemaProvider().diff("schema", updated, news).changes is False


def test_a_migration_is_refused_without_the_drill_that_is_required(
    conninfo: str, directory: Path, tmp_path: Path, rootfs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox = Sandbox(tmp_path / "home", rootfs)
    for path, text in pgbackrest_files(LocalSettings(), Paths()).items():
        sandbox.write_file(path, text)
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    old = inputs(conninfo, directory)
    (directory / "500_more.sql").write_text("CREATE TABLE more ();")
    place = {"backup_home": str(sandbox.home), "backup_rootfs": str(rootfs), "drill_key_file": str(tmp_path / "key")}
    news = inputs(conninfo, directory, **place, drill_days=7.0)

    assert SchemaProvider().check(old, news).failures == []
    assert "schema: would be refused: migrations need proof" in capfd.readouterr().err
    with pytest.raises(DrillRequiredError, match="backup restore-test"):
        SchemaProvider().update("schema", outs, news)

    assert status(conninfo).version == 3


def test_a_contract_is_refused_while_a_release_needs_the_schema(conninfo: str, directory: Path) -> None:
    (directory / "500_drop.sql").write_text("-- phase: contract\nALTER TABLE users DROP COLUMN name;")
    old, new = ["green (kept for rollback)", "v0.4.0", 3.0, 3.0], ["green (live)", "v0.5.0", 3.0, 500.0]

    with pytest.raises(ContractRefusedError, match=r"500_drop\.sql:1:1: .*green \(kept for rollback\): v0\.4\.0"):
        SchemaProvider().create(inputs(conninfo, directory, needs=[old]))
    outs = SchemaProvider().create(inputs(conninfo, directory, needs=[new])).outs

    assert outs is not None
    assert outs["version"] == 500
    assert SchemaProvider().diff("schema", outs, inputs(conninfo, directory, needs=[old])).changes is False


def test_a_target_limits_the_expected_migrations(conninfo: str, directory: Path) -> None:
    props = inputs(conninfo, directory, target=2.0)

    outs = SchemaProvider().create(props).outs

    assert outs is not None
    assert outs["version"] == 2
    assert SchemaProvider().diff("schema", outs, props).changes is False
    assert SchemaProvider().diff("schema", outs, inputs(conninfo, directory, target=3.0)).changes is True


def test_a_target_of_the_product_leaves_own_migrations_that_are_applied(conninfo: str, directory: Path) -> None:
    """As after a rollback of the database to before an update of the product."""
    [third] = directory.glob("003_*.sql")
    text = third.read_text()
    third.unlink()
    (directory / "500_own.sql").write_text("CREATE TABLE own (id bigint PRIMARY KEY);")
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    third.write_text(text)
    held = inputs(conninfo, directory, target=2.0)

    assert SchemaProvider().diff("schema", outs, held).changes is False
    assert SchemaProvider().update("schema", outs, held).outs == {**outs, **held}
    assert SchemaProvider().diff("schema", outs, inputs(conninfo, directory)).changes is True


def test_a_changed_repeatable_migration_is_a_difference_and_a_deleted_one_is_none(
    conninfo: str, directory: Path
) -> None:
    (directory / "R__keys.sql").write_text("CREATE OR REPLACE VIEW keys AS SELECT id FROM users;")
    first = SchemaProvider().create(inputs(conninfo, directory))
    assert first.outs is not None
    same = SchemaProvider().diff(first.id, first.outs, inputs(conninfo, directory)).changes
    pinned = SchemaProvider().diff(first.id, first.outs, inputs(conninfo, directory, target=2)).changes
    (directory / "R__keys.sql").write_text("CREATE OR REPLACE VIEW keys AS SELECT id, name FROM users;")
    changed = SchemaProvider().diff(first.id, first.outs, inputs(conninfo, directory)).changes
    second = SchemaProvider().update(first.id, first.outs, inputs(conninfo, directory))
    assert second.outs is not None
    settled = SchemaProvider().diff(first.id, second.outs, inputs(conninfo, directory)).changes
    (directory / "R__keys.sql").unlink()
    third = SchemaProvider().update(first.id, second.outs, inputs(conninfo, directory))
    assert third.outs is not None

    assert (same, pinned, changed, settled) == (False, True, True, False)
    assert SchemaProvider().diff(first.id, third.outs, inputs(conninfo, directory)).changes is False


def test_a_changed_role_is_a_difference(conninfo: str, directory: Path) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory, roles={"pg_monitor": "service"})).outs

    assert outs is not None
    assert (
        SchemaProvider().diff("schema", outs, inputs(conninfo, directory, roles={"pg_monitor": "service"})).changes
        is False
    )
    assert (
        SchemaProvider().diff("schema", outs, inputs(conninfo, directory, roles={"other": "service"})).changes is True
    )


def test_jobs_that_would_never_run_are_an_error(conninfo: str) -> None:
    with pytest.raises(UnsuitableServerError, match="jobs, but no pg_cron"):
        SchemaProvider().create(inputs(conninfo, SHIPPED))


def test_only_the_variant_of_the_servers_edition_is_expected(conninfo: str, directory: Path) -> None:
    for edition in ("apache", "community"):
        (directory / f"500_more.{edition}.sql").write_text(f"CREATE TABLE {edition} ();")
    props = inputs(conninfo, directory)

    outs = SchemaProvider().create(props).outs

    assert outs is not None
    assert outs["applied"][-1].startswith("500_more.apache ")
    assert SchemaProvider().diff("schema", outs, props).changes is False


def test_the_path_of_the_checkout_is_no_difference_but_the_connection_is(
    conninfo: str, directory: Path, tmp_path: Path
) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    moved = directory.rename(tmp_path / "moved")

    assert SchemaProvider().diff("schema", outs, inputs(conninfo, moved)).changes is False
    assert SchemaProvider().diff("schema", outs, inputs(f"{conninfo} sslmode=disable", moved)).changes is True


def test_read_reports_the_ledger_so_that_drift_is_a_difference(
    postgres: PostgresServer, fresh_database: str, conninfo: str, directory: Path
) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    with postgres.superuser(fresh_database) as connection:
        connection.execute("DELETE FROM observatory.schema_migrations WHERE version = 3")

    drifted = SchemaProvider().read("schema", outs).outs

    assert drifted is not None
    assert drifted["version"] == 2
    assert SchemaProvider().diff("schema", drifted, inputs(conninfo, directory)).changes is True


def test_an_edited_file_is_a_difference_that_update_refuses(conninfo: str, directory: Path) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    with (directory / "003_create_indexes.sql").open("a") as file:
        file.write("SELECT 1;\n")
    news = inputs(conninfo, directory)

    assert SchemaProvider().diff("schema", outs, news).changes is True
    with pytest.raises(MigrationHistoryError, match=r"003_create_indexes\.sql:\d+:1: was edited"):
        SchemaProvider().update("schema", outs, news)


def test_update_does_not_fill_a_database_that_was_dropped_or_emptied(
    postgres: PostgresServer, fresh_database: str, conninfo: str, directory: Path
) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    (directory / "500_more.sql").write_text("CREATE TABLE more ();")
    news = inputs(conninfo, directory)
    with postgres.superuser(fresh_database) as connection:
        connection.execute("DROP SCHEMA observatory CASCADE")
    with pytest.raises(DatabaseDroppedError, match=r"has no ledger .*\n.*rollback --method database"):
        SchemaProvider().update("schema", outs, news)
    gone = pytest.raises(DatabaseDroppedError, match=r"does not exist .*\n.*rollback --method database")
    with postgres.superuser() as connection:
        connection.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [fresh_database])
    with gone:  # its removal was interrupted
        SchemaProvider().update("schema", outs, news)
    postgres.drop_database(fresh_database)
    with gone:
        SchemaProvider().update("schema", outs, news)


def test_update_fills_the_database_of_a_new_name(postgres: PostgresServer, conninfo: str, directory: Path) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None
    with postgres.fresh_database() as name:
        updated = SchemaProvider().update("schema", outs, inputs(postgres.conninfo(dbname=name), directory)).outs
    assert updated is not None
    assert updated["version"] == 3


def test_a_failed_verification_is_a_failed_step_until_it_is_repaired(
    postgres: PostgresServer, fresh_database: str, conninfo: str, directory: Path
) -> None:
    props = inputs(conninfo, directory, service_conninfo=conninfo)
    outs = SchemaProvider().create(props).outs
    assert outs is not None
    assert "service_conninfo" not in outs  # a password; no difference depends on it
    with postgres.superuser(fresh_database) as connection:
        connection.execute("ALTER INDEX llm_traces_user_ts RENAME TO hidden")

    for _ in range(2):
        with pytest.raises(VerificationFailedError, match=r"version 3, but .*indexes: .*llm_traces_user_ts is missing"):
            SchemaProvider().update("schema", outs, props)
    with postgres.superuser(fresh_database) as connection:
        connection.execute("ALTER INDEX hidden RENAME TO llm_traces_user_ts")
    assert SchemaProvider().update("schema", outs, props).outs == outs


def test_unknown_checks_are_printed(conninfo: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "500_more.sql").write_text("CREATE TABLE more ();")

    SchemaProvider().create(inputs(conninfo, directory))

    unknown = "schema: not verified: objects: 500_more.sql: no PostgreSQL for a rehearsal is installed on this machine"
    assert unknown in capsys.readouterr().err


def test_check_reports_an_unusable_file(conninfo: str, directory: Path) -> None:
    (directory / "500_more.sql").write_text("SELECT 1;\nSELCT 2;")

    [failure] = SchemaProvider().check({}, inputs(conninfo, directory)).failures

    assert failure.property == "migrations"
    assert failure.reason.startswith("500_more.sql:2:1: syntax error")


def test_delete_keeps_the_data(conninfo: str, directory: Path) -> None:
    outs = SchemaProvider().create(inputs(conninfo, directory)).outs
    assert outs is not None

    SchemaProvider().delete("schema", outs)

    assert status(conninfo).version == 3


def test_the_provider_is_stored_by_reference() -> None:
    stored = pickle.dumps(SchemaProvider())

    assert b"components.schema" in stored
    assert len(stored) < 100
    assert len(serialize_provider(SchemaProvider())) < 200


PROGRAM = """
import os
from pathlib import Path

import pulumi

from components.schema import Schema, SchemaArgs

conninfo = os.environ["CONNINFO"]
schema = Schema("schema", SchemaArgs(conninfo=conninfo, migrations=Path(os.environ["MIGRATIONS"])))
pulumi.export("version", schema.version)
pulumi.export("is_int", schema.version.apply(lambda version: isinstance(version, int)))
"""


def test_a_program_deploys_it_once_and_the_password_is_not_in_the_state(
    postgres: PostgresServer, fresh_database: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.superuser() as admin:
        admin.execute(b"ALTER ROLE postgres PASSWORD 'correct-horse-battery'")
    project, backend = tmp_path / "project", tmp_path / "backend"
    project.mkdir()
    backend.mkdir()
    (project / "Pulumi.yaml").write_text("name: lab\nruntime: python\n")
    (project / "__main__.py").write_text(PROGRAM)
    conninfo = postgres.tcp_conninfo(user="postgres", password="correct-horse-battery", dbname=fresh_database)
    monkeypatch.setenv("CONNINFO", conninfo)
    monkeypatch.setenv("MIGRATIONS", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(SHIPPED.parent))
    options = StackOptions(cwd=project, stack="dev", backend=backend, passphrase="x")

    first = up(options)
    second = up(options)

    assert first.outputs == {"version": 3, "is_int": True}
    assert [step.operation for step in second.steps if step.operation != "same"] == []
    state = (backend / ".pulumi/stacks/lab/dev.json").read_text()
    assert "001_initial_schema" in state
    assert "correct-horse-battery" not in state
