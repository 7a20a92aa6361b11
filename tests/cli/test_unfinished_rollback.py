"""`status` names a rollback of the database that was interrupted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from observatory.backups.rollback.record import Phase, RollbackRecord, RollbackRecords
from observatory.cli.stack import unfinished_rollback
from observatory.operations.stack_status import Status


def test_an_unfinished_rollback_is_named_with_what_ends_it(tmp_path: Path) -> None:
    records = RollbackRecords(tmp_path)
    record = RollbackRecord(
        id="20261129-010203-ab12",
        kind="rollback",
        phase=Phase.SET_ASIDE,
        target="2026-11-29T01:00:00Z",
        source="repository 1",
        actor="alice",
        reason="test",
        at=datetime.now(UTC),
        schema_before=8,
        schema_after=8,
    )

    def line() -> list[str]:
        found = records.unfinished()
        empty = Status(daemons=[], rollout=None, schema_version=None, fleet_size=1, jobs=[], passwords=[])
        return unfinished_rollback(empty if found is None else replace(empty, database_rollback=found))

    records.write(record)
    [text] = line()
    assert "rollback of the database 20261129-010203-ab12 is not finished" in text
    assert "set the live data aside" in text
    assert "`observatory up` ends it" in text
    records.write(record.changed(phase=Phase.DONE))
    assert line() == []
