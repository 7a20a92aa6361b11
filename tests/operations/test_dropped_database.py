"""A stack's database that was dropped, renamed or emptied: what is refused, and what the texts name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.backups.rollback.record import Phase, RollbackRecords
from observatory.database.errors import DatabaseDroppedError
from observatory.database.presence import Presence, databases
from observatory.engines.embedded import EngineError
from observatory.operations import database_rollback, stack_up
from observatory.operations import dropped_database as module
from observatory.operations.dropped_database import LiveDatabase, check_name, check_not_dropped, live_database
from observatory.platforms.errors import OperationError
from observatory.progress import Progress
from tests.support.postgres import PostgresServer
from tests.support.rollbacks import rollback_record

LEDGER = "CREATE SCHEMA observatory; CREATE TABLE observatory.schema_migrations ()"
GONE = "gone_database"


@pytest.fixture
def stack(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A platform whose stack was up, with a database that the server does not have."""
    (tmp_path / "demonstrated").touch()
    platform = SimpleNamespace(
        settings=SimpleNamespace(database=SimpleNamespace(name=GONE)),
        workspace=SimpleNamespace(demonstrated=tmp_path / "demonstrated"),
        declared=f"dbname={GONE} user=migrator",
        unsupported=lambda _operation: None,
    )
    monkeypatch.setattr(module, "outputs", lambda _platform: {"admin_database_url": postgres.conninfo()})
    monkeypatch.setattr(module, "declared_schema", lambda each: {"conninfo": each.declared})
    return platform


def of_database(stack: Any, name: str) -> Any:
    stack.settings.database.name, stack.declared = name, f"dbname={name}"
    return stack


@pytest.fixture
def renamed(postgres: PostgresServer) -> Iterator[str]:
    """A database with a ledger of migrations under another name."""
    with postgres.fresh_database(extensions=False) as name:
        with postgres.superuser(name) as inside:
            inside.execute(LEDGER)
        yield name


def test_a_dropped_database_is_named_with_the_one_that_may_be_the_renamed_one(stack: Any, renamed: str) -> None:
    with pytest.raises(DatabaseDroppedError, match="does not exist on the running server") as caught:
        check_not_dropped(stack)
    assert f'ALTER DATABASE "{renamed}" RENAME TO "{GONE}"' in str(caught.value)
    assert "DROP DATABASE" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_emptied_database_has_to_go_before_the_renamed_one_gets_its_name(
    stack: Any, renamed: str, fresh_database: str
) -> None:
    with pytest.raises(DatabaseDroppedError, match="has no ledger of migrations any more") as caught:
        check_not_dropped(of_database(stack, fresh_database))
    assert f'DROP DATABASE "{fresh_database}"; ALTER DATABASE "{renamed}"' in str(caught.value)
    check_not_dropped(of_database(stack, renamed))


def test_a_new_name_in_the_settings_is_refused_and_is_no_dropped_database(stack: Any, renamed: str) -> None:
    of_database(stack, renamed).settings.database.name = "another"
    check_not_dropped(stack)
    with pytest.raises(OperationError, match=f"is 'another', and the stack's database is '{renamed}'") as caught:
        check_name(stack)
    assert f"Set it to '{renamed}' again" in str(caught.value)
    stack.settings.database.name = renamed
    check_name(stack)


def test_nothing_is_checked_before_the_first_up_has_ended_nor_where_no_rollback_exists(stack: Any) -> None:
    stack.unsupported = lambda _operation: "not here"
    check_not_dropped(stack)
    stack.unsupported = lambda _operation: None
    stack.workspace.demonstrated.unlink()
    check_not_dropped(stack)


def test_a_dropped_database_is_compared_by_the_server_s_own_one(stack: Any, fresh_database: str) -> None:
    live = live_database(stack)
    assert (live.presence, live.lost, "dbname=postgres" in live.conninfo) == (Presence.DROPPED, True, True)
    emptied = live_database(of_database(stack, fresh_database))
    assert (emptied.presence, emptied.lost) == (Presence.EMPTIED, True)
    assert f"dbname={fresh_database}" in emptied.conninfo
    reported: list[Progress] = []
    emptied.report(reported.append)
    assert "has no ledger of migrations" in reported[0].task


def test_a_renamed_database_is_not_rolled_back_unseen(
    stack: Any, renamed: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands for the restored one, too, which had the database under the name of before, or not at all."""
    live = live_database(stack)
    live.check_not_renamed(postgres.conninfo())  # one that was there at the target comes back as it was
    for then in ({}, dict.fromkeys(databases(postgres.conninfo()), GONE)):
        monkeypatch.setattr(module, "databases", lambda _server, found=then: found)
        with pytest.raises(RollbackRefusedError, match=f"would remove .*{renamed}") as caught:
            live.check_not_renamed("")
        assert f'ALTER DATABASE "{renamed}" RENAME TO "{GONE}"' in str(caught.value)
    LiveDatabase(name=renamed, server=live.server, presence=Presence.WHOLE).check_not_renamed("")


def test_a_database_that_was_renamed_after_the_backup_is_found_before_the_restore(
    stack: Any, renamed: str, postgres: PostgresServer
) -> None:
    live, oids = live_database(stack), {name: oid for oid, name in databases(postgres.conninfo()).items()}
    live.check_not_renamed_since({oids[renamed]: renamed, oids["postgres"]: GONE})
    with pytest.raises(RollbackRefusedError, match=f"would remove {renamed}; nothing was changed"):
        live.check_not_renamed_since({oids[renamed]: GONE})


@pytest.mark.parametrize(("name", "text"), [("no_such", "did not exist"), ("postgres", "had no ledger of migrations")])
def test_a_target_without_the_database_is_refused_with_its_time(
    name: str, text: str, postgres: PostgresServer, renamed: str
) -> None:
    restored: Any = SimpleNamespace(conninfo=postgres.conninfo)
    with pytest.raises(RollbackRefusedError, match=f"at NOON the database '{name}' {text}.*\nChoose an earlier time"):
        database_rollback._check_restored(restored, name, "at NOON")
    database_rollback._check_restored(restored, renamed, "at NOON")


def test_a_rollback_of_a_dropped_database_is_not_undone(tmp_path: Path) -> None:
    records = RollbackRecords(tmp_path)
    records.write(rollback_record(phase=Phase.DONE))
    assert not database_rollback._last(records).was_dropped
    records.write(rollback_record(phase=Phase.DONE, id="20261129-020203-ab12", was_dropped=True))
    with pytest.raises(RollbackRefusedError, match="20261129-020203-ab12 has replaced a database") as e:
        database_rollback._last(records)
    assert e.value.exit_code == 3


@pytest.mark.parametrize("fails", [False, True])
def test_an_up_that_starts_the_server_ends_with_what_is_missing(
    fails: bool, stack: Any, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the machine: before the engine runs, no server responds."""
    server = postgres.conninfo(dbname="postgres")
    current = {"admin_database_url": "host=/nonexistent"}

    def engine_up(*_arguments: Any, **_options: Any) -> None:
        current["admin_database_url"] = server
        if fails:
            raise EngineError("the fleet is not ready")

    monkeypatch.setattr(module, "outputs", lambda _platform: current)
    monkeypatch.setattr(stack_up, "finish_interrupted", lambda *_arguments: None)
    monkeypatch.setattr(stack_up, "engine_options", lambda _platform: None)
    monkeypatch.setattr("observatory.operations.stack_up.automation.end_killed_run", lambda *_arguments: None)
    monkeypatch.setattr(stack_up, "engine_of", lambda _chosen: SimpleNamespace(up=engine_up))
    stack.before_up = lambda _report: None
    with pytest.raises(DatabaseDroppedError, match="does not exist on the running server"):
        stack_up._up(stack, "embedded", lambda _progress: None)
