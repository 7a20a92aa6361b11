"""A rollback of the database ends when its stack is up, and is in the journal then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from observatory.backups import dump_restore
from observatory.backups.dump_manifest import CronJob
from observatory.backups.rollback.record import Phase, RollbackRecords
from observatory.documents.rollout import FleetState, RolloutDocument
from observatory.operations import database_exchange as module
from observatory.progress import silent
from observatory.settings import LocalSettings
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


@pytest.mark.parametrize("starts", [True, False])
def test_an_undo_starts_the_fleet_that_its_rollback_has_stopped_and_stops_one_that_does_not_fit(
    starts: bool, platform: Platform
) -> None:
    green = FleetState(version="v0.1.0", sha256="0" * 64, weight=0, stopped=("green-1",) if starts else ())
    document = RolloutDocument(blue=green.model_copy(update={"weight": 100, "stopped": ()}), green=green)
    written: list[RolloutDocument] = []
    stack: Any = platform
    stack.settings = LocalSettings()
    stack.rollout_store = SimpleNamespace(read=lambda: document, compare_and_set=lambda _old, new: written.append(new))
    swap: Any = SimpleNamespace(records=RollbackRecords(platform.workspace.home))

    undo = rollback_record(phase=Phase.AGREE, kind="undo", **{"started" if starts else "stopped": ("green",)})
    assert module.agree(platform, swap, undo).phase is Phase.UP

    assert [bool(each.green.stopped) for each in written] == [not starts]


@pytest.mark.parametrize("has_jobs", [True, False])
def test_a_rollback_to_a_dump_schedules_the_dumps_own_jobs_before_those_of_the_schema(
    has_jobs: bool, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "declared_schema", lambda _platform: {"conninfo": "user=migrator dbname=observatory"})
    monkeypatch.setattr(module, "declared_name", lambda _platform: "observatory")
    for owner, name in (
        (module, "ensure_database"),
        (dump_restore, "restore_cron_jobs"),
        (module, "schedule_jobs"),
        (module, "grant_access"),
    ):
        monkeypatch.setattr(owner, name, lambda *given, name=name, **_options: calls.append((name, *given)))
    stack: Any = platform
    stack.rollout_store = SimpleNamespace(read=lambda: None)
    swap: Any = SimpleNamespace(records=RollbackRecords(platform.workspace.home), administrator="dbname=observatory")
    job = CronJob(name="own", schedule="0 3 * * *", command="SELECT 1", username="migrator", active=True)
    record = rollback_record(phase=Phase.AGREE, from_dump=True, cron_jobs=(job,) if has_jobs else ())
    kept = swap.records.write(record)  # another command may end it

    module.agree(platform, swap, swap.records.unfinished() or kept)

    restored = [("restore_cron_jobs", "dbname=observatory", (job,))] if has_jobs else []
    assert calls[1:-1] == [*restored, ("schedule_jobs", "user=migrator dbname=observatory")]
