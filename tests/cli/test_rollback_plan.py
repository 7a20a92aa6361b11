"""What the plan of a rollback of the database shows."""

from __future__ import annotations

import io

from rich.console import Console

from observatory.backups.rollback.loss import Loss
from observatory.cli.database_rollback import _plan_view
from observatory.operations.database_rollback import DatabaseRollbackPlan
from observatory.operations.database_rollback_fit import SchemaChange


def shown(loss: Loss) -> str:
    plan = DatabaseRollbackPlan(
        database="observatory",
        target="2026-11-29T00:59:24Z",
        reached=None,
        lsn=None,
        source="dump",
        segments=0,
        estimated_s=1,
        loss=loss,
        schema=SchemaChange(before=8, after=8, target=None, undone=(), stopped=()),
    )
    output = io.StringIO()
    Console(file=output, width=200).print(_plan_view(plan))
    return output.getvalue()


def test_damaged_tables_are_named_and_the_number_of_lost_rows_is_a_least_one() -> None:
    text = shown(Loss(transactions=3, tables=(), unreadable=("plain", "events (events_1)")))
    assert "3 transactions, at least 0 rows" in text
    assert "plain, events (events_1): cannot be read, not compared" in text
    assert "at least" not in shown(Loss(transactions=3, tables=()))
