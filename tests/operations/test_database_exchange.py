"""What an interrupted rollback of the database says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.backups.rollback.record import Phase, RollbackRecord
from observatory.operations.database_exchange import explained_interruption, records_of
from tests.support.rollbacks import rollback_record


def record(number: int, phase: Phase) -> RollbackRecord:
    return rollback_record(id=f"20261129-01020{number}-ab12", phase=phase)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, "the database was not changed"),
        (Phase.UP, "the rollback of the database 20261129-010202-ab12 is done, and `observatory up`"),
        (Phase.DONE, "the rollback of the database 20261129-010202-ab12 is done, and `observatory up`"),
    ],
)
def test_an_interrupted_rollback_says_whether_the_database_was_exchanged(
    written: Phase | None, expected: str, tmp_path: Path
) -> None:
    workspace: Any = SimpleNamespace(home=tmp_path)
    records_of(workspace).write(record(1, Phase.DONE))  # an earlier one

    def interrupted() -> None:
        if written:
            records_of(workspace).write(record(2, written))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught, explained_interruption(workspace):
        interrupted()
    [note] = caught.value.__notes__
    assert note.startswith(expected)
