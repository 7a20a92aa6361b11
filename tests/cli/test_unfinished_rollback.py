"""`status` names a rollback of the database that was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from observatory.backups.rollback.record import Phase, RollbackRecords
from observatory.cli.stack import left_over, unfinished_rollback
from observatory.operations.stack_status import Status
from tests.support.rollbacks import rollback_record

EMPTY = Status(daemons=[], rollout=None, schema_version=None, fleet_size=1, jobs=[], passwords=[])


def test_an_unfinished_rollback_is_named_with_what_ends_it(tmp_path: Path) -> None:
    records = RollbackRecords(tmp_path)
    record = rollback_record(phase=Phase.SET_ASIDE)

    def line() -> list[str]:
        found = records.unfinished()
        return unfinished_rollback(EMPTY if found is None else replace(EMPTY, database_rollback=found))

    records.write(record)
    [text] = line()
    assert "rollback of the database 20261129-010203-ab12 is not finished" in text
    assert "set the live data aside" in text
    assert "`observatory up` ends it" in text
    records.write(record.changed(phase=Phase.DONE))
    assert line() == []


def test_what_a_killed_rollback_left_is_named(tmp_path: Path) -> None:
    left = tmp_path / "data/postgres-next-20261129-010203-ab12"
    left.mkdir(parents=True)
    [text] = left_over(replace(EMPTY, rollback_left_over=RollbackRecords(tmp_path).left_over()))
    assert f"has left {left}. `observatory up` removes it" in text
    assert left_over(EMPTY) == []
