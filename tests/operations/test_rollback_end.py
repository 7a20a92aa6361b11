"""A rollback of the database ends when its stack is up, and is in the journal then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from observatory.backups.rollback.record import Phase, RollbackRecords
from observatory.operations import database_exchange as module
from observatory.progress import silent
from tests.support.rollbacks import rollback_record

if TYPE_CHECKING:
    from observatory.platforms.platform import Platform

RECORD = rollback_record(phase=Phase.UP, schema_after=7, lost_transactions=2, lost_rows=3)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    workspace = SimpleNamespace(home=tmp_path, sandbox=None)
    return cast("Platform", SimpleNamespace(workspace=workspace))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(module, "record_event", lambda _workspace, event, **details: found.append((event, details)))
    return found


def test_a_rollback_whose_stack_is_up_is_in_the_journal_and_ends(
    platform: Platform, events: list[tuple[str, dict[str, Any]]]
) -> None:
    records = RollbackRecords(platform.workspace.home)
    records.write(RECORD)
    assert module.finish_interrupted(platform, silent) is None  # the exchange is over
    assert records.unfinished() == RECORD

    module.end_agreed(platform)
    module.end_agreed(platform)

    assert records.all() == [RECORD.changed(phase=Phase.DONE)]
    [(event, details)] = events
    assert (event, details["lost"]) == ("database-rolled-back", {"transactions": 2, "rows": 3})


def test_the_journal_names_the_damaged_tables_that_were_not_compared(
    platform: Platform, events: list[tuple[str, dict[str, Any]]]
) -> None:
    RollbackRecords(platform.workspace.home).write(RECORD.changed(unreadable=("plain",)))
    module.end_agreed(platform)
    assert events[0][1]["lost"] == {"transactions": 2, "rows": 3, "unreadable": ["plain"]}


def test_an_exchange_that_is_not_agreed_on_does_not_end(
    platform: Platform, events: list[tuple[str, dict[str, Any]]]
) -> None:
    records = RollbackRecords(platform.workspace.home)
    records.write(RECORD.changed(phase=Phase.AGREE))

    module.end_agreed(platform)

    assert records.unfinished() == RECORD.changed(phase=Phase.AGREE)
    assert events == []
