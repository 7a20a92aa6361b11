"""Entries that could not be copied to the audit table are copied by the next command."""

from __future__ import annotations

from pathlib import Path

from observatory.database import ensure_database
from observatory.database.audit_table import read_entries
from observatory.documents.journal import FileJournal, entries
from observatory.operations.audit import audit
from observatory.platforms import platform_of
from observatory.progress import silent
from observatory.settings import LocalSettings
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
