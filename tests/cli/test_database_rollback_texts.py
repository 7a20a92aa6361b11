"""What a rollback of the database prints about rows that it cannot compare, and when it offers an undo."""

from __future__ import annotations

import io
from typing import cast

import pytest
from rich.console import Console

from observatory.backups.rollback.loss import Loss, TableLoss
from observatory.backups.rollback.record import Phase
from observatory.cli.app import Output
from observatory.cli.database_rollback import WHOLE, _loss_text, _plan_view, _show
from observatory.database.presence import Presence
from observatory.documents.rollout import RolloutDocument
from observatory.operations import DatabaseRollback, DatabaseRollbackPlan
from observatory.operations.database_rollback_fit import SchemaChange
from tests.support.rollbacks import rollback_record


def plan(loss: Loss, live: Presence = Presence.WHOLE) -> DatabaseRollbackPlan:
    return DatabaseRollbackPlan(
        database="observatory",
        target="2026-11-29T01:00:00Z",
        reached=None,
        lsn=None,
        source="a backup",
        segments=1,
        estimated_s=1.0,
        loss=loss,
        live=live,
        schema=SchemaChange(before=8, after=8, undone=(), target=None),
    )


def text(live: Presence, lost: int) -> str:
    table = TableLoss(table="users", now=lost, then=5, lost=lost, returned=5)
    return _loss_text(plan(Loss(transactions=3, tables=(table,)), live))


def shown(loss: Loss) -> str:
    output = io.StringIO()
    Console(file=output, width=200).print(_plan_view(plan(loss)))
    return output.getvalue()


def test_rows_of_a_dropped_database_are_not_known() -> None:
    assert text(Presence.WHOLE, 0) == "3 transactions, 0 rows"
    assert text(Presence.DROPPED, 0) == "3 transactions, rows of before: not known, the database was dropped"
    emptied = text(Presence.EMPTIED, 2)
    assert emptied == "3 transactions, 2 rows of now; rows of before: not known, the database was emptied"
    assert Presence.WHOLE == WHOLE


def test_damaged_tables_are_named_and_the_number_of_lost_rows_is_a_least_one() -> None:
    damaged = shown(Loss(transactions=3, tables=(), unreadable=("plain", "events (events_1)")))
    assert "3 transactions, at least 0 rows" in damaged
    assert "plain, events (events_1): cannot be read, not compared" in damaged
    assert "at least" not in shown(Loss(transactions=3, tables=()))


@pytest.mark.parametrize("was_dropped", [False, True])
def test_only_a_rollback_that_can_be_undone_offers_it(was_dropped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    record = rollback_record(phase=Phase.DONE, was_dropped=was_dropped)
    _show(DatabaseRollback(record=record, rollout=cast("RolloutDocument", None)), Output.TABLE)
    assert ("--undo" in capsys.readouterr().out) is not was_dropped
