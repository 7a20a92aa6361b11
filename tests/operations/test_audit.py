"""Entries that could not be copied to the audit table are copied by the next command."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.database import ensure_database
from observatory.database.audit_table import read_entries
from observatory.documents.journal import FileJournal, entries
from observatory.operations.audit import audit
from observatory.operations.delivery_journal import audited, audited_once_begun, open_journal
from observatory.platforms import platform_of
from observatory.progress import silent
from observatory.settings import LocalSettings
from observatory.waiting import wait_until
from observatory.workspace import Workspace
from tests.support.postgres import PostgresServer

DOWN = "host=127.0.0.1 port=1 user=postgres dbname=postgres"


def test_entries_missed_while_the_database_was_down_are_added_later(postgres: PostgresServer, tmp_path: Path) -> None:
    name = "audit_catches_up"
    ensure_database(postgres.conninfo(), name=name, owner="auditing_owner")
    try:
        workspace = Workspace(root=tmp_path, stack="local")
        platform = platform_of(workspace, LocalSettings())
        journal = FileJournal(workspace.journal, silent)
        journal.record("start", deployment="d1", version="v0.2.0")
        audit(platform, journal, lambda: DOWN)
        (told,) = [entry.details for entry in entries(workspace.journal) if entry.event == "not-audited"]
        assert told["where"] == "table"
        assert "Cannot connect" in told["reason"]

        audit(platform, journal, None)  # an emergency asks no database
        audit(platform, journal, lambda: postgres.conninfo(dbname=name))
        known = read_entries(postgres.conninfo(dbname=name))
        assert [row.event for row in known] == ["start", "not-audited"]
        assert [row.id for row in known] == [entry.id for entry in entries(workspace.journal)]
    finally:
        postgres.drop_database(name)
        with postgres.superuser() as admin:
            admin.execute("DROP ROLE auditing_owner")


def test_an_incomplete_line_loses_no_other_entry(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal.jsonl", silent)
    journal.record("start", deployment="d1")
    with journal.file.open("a") as file:
        file.write('{"id": "half", "at": 1.0, "act')
    journal.record("shift", deployment="d1")
    assert [entry.event for entry in entries(journal.file)] == ["start", "shift"]


def test_an_entry_is_in_the_table_while_its_command_runs(postgres: PostgresServer, tmp_path: Path) -> None:
    """So a command that is killed afterwards has left it there."""
    name = "audit_as_it_happens"
    ensure_database(postgres.conninfo(), name=name, owner="happening_owner")
    try:
        platform = platform_of(Workspace(root=tmp_path, stack="local"), LocalSettings())
        conninfo = postgres.conninfo(dbname=name)
        with open_journal(platform, silent, conninfo=lambda: conninfo) as journal:
            journal.record("start", deployment="d1")
            assert wait_until(lambda: [row.event for row in read_entries(conninfo)] == ["start"], 60, interval_s=0.05)
    finally:
        postgres.drop_database(name)
        with postgres.superuser() as admin:
            admin.execute("DROP ROLE happening_owner")


def test_a_database_that_is_down_delays_no_entry(tmp_path: Path) -> None:
    platform = platform_of(Workspace(root=tmp_path, stack="local"), LocalSettings())
    with open_journal(platform, silent, conninfo=lambda: DOWN) as journal:
        journal.record("start", deployment="d1")
        assert [entry.event for entry in entries(journal.file)] == ["start"]
    events = [entry.event for entry in entries(journal.file)]
    assert events[0] == "start"
    assert "not-audited" in events


def test_what_fails_leaves_its_start_and_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(root=tmp_path, stack="local")
    recorded: list[tuple[str, dict[str, object]]] = []
    record = "observatory.operations.delivery_journal.record_event"
    monkeypatch.setattr(record, lambda _workspace, event, **details: recorded.append((event, details)))
    seen: list[tuple[str, dict[str, object]]] = []

    def interrupted() -> None:
        with audited(workspace, "key-revocation", key="k1"):
            seen.extend(recorded)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [("key-revocation-started", {"key": "k1"})]
    assert recorded[1:] == [("key-revocation-failed", {"reason": "KeyboardInterrupt", "key": "k1"})]


def test_a_start_is_recorded_once_and_only_where_something_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded: list[str] = []
    record = "observatory.operations.delivery_journal.record_event"
    monkeypatch.setattr(record, lambda _workspace, event, **_details: recorded.append(event))
    workspace = Workspace(root=tmp_path, stack="local")
    with audited_once_begun(workspace, "schema-deployment"):
        pass
    assert recorded == []
    with audited_once_begun(workspace, "schema-deployment") as begin:
        begin()
        begin()
    assert recorded == ["schema-deployment-started"]
    with pytest.raises(RuntimeError), audited_once_begun(workspace, "schema-deployment"):
        raise RuntimeError("refused")
    assert recorded[1:] == ["schema-deployment-failed"]
