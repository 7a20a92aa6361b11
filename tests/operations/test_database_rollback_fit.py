"""Which versions of the service fit an earlier schema: the version with traffic is never left without what it needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.backups.rollback.record import Phase
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import FleetState, RolloutDocument
from observatory.operations import database_rollback
from observatory.operations import database_rollback_fit as module
from observatory.operations.database_rollback_fit import SchemaChange, known_migrations, schema_change
from observatory.platforms.platform import Platform
from observatory.progress import silent
from tests.support.rollbacks import rollback_record

NOW = {number: f"{number:03d}_m" for number in range(1, 10)}
DIGEST = "0" * 64
NEEDS = {"v0.1.0": 3, "v0.2.0": 8, "v0.10.0": 8, "v0.11.0-rc.1": 8, "v0.12.0": 9, "v0.3.0": 7, "v0.4.0": 7}
UNSIGNED, CONTRACTED = "v0.11.0-rc.1", "v0.4.0"


def manifest(version: str) -> Manifest:
    need = NEEDS[version]
    return Manifest(name="storage-service", version=version, sha256=DIGEST, schema_min=need, schema_max=need)


@pytest.fixture(autouse=True)
def _stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(_platform: Any, version: str) -> Manifest:
        if version == UNSIGNED:
            raise DeliveryRefusedError("no trusted key")
        return manifest(version)

    monkeypatch.setattr(module, "checked_release", checked)
    monkeypatch.setattr(module, "contracted_beyond", lambda _live, need: 9 if need == NEEDS[CONTRACTED] else None)


PLATFORM = cast(
    "Platform",
    SimpleNamespace(release_store=SimpleNamespace(manifest=manifest, versions=lambda: tuple(sorted(NEEDS)))),
)


def rollout(active: str, idle: str, **document: Any) -> RolloutDocument:
    return RolloutDocument(
        blue=FleetState(version=active, sha256=DIGEST, weight=100),
        green=FleetState(version=idle, sha256=DIGEST, weight=0),
        **document,
    )


def change(active: str, idle: str, *, then: int, live: str | None = "", **document: Any) -> SchemaChange:
    earlier = [number for number in NOW if number <= then]
    return schema_change(PLATFORM, rollout(active, idle, **document), live=live, now=NOW, then=earlier)


def returning(active: str, idle: str = "v0.1.0", *, now: int, contracted: tuple[int, ...]) -> SchemaChange:
    """Return the change to a schema that has more migrations than the live one."""
    live = {number: name for number, name in NOW.items() if number <= now}
    return schema_change(PLATFORM, rollout(active, idle), live="", now=live, then=NOW, contracted=contracted)


def test_undone_migrations_are_named_and_kept_from_the_next_up() -> None:
    found = change("v0.1.0", "v0.1.0", then=7)
    assert found == SchemaChange(before=9, after=7, undone=("008_m", "009_m"), target=7)


def test_an_equal_schema_keeps_the_target() -> None:
    assert change("v0.12.0", "v0.1.0", then=9, schema_target=9).target == 9
    assert change("v0.12.0", "v0.1.0", then=9).target is None


def test_a_schema_with_more_raises_the_target_to_what_it_has() -> None:
    live = {number: name for number, name in NOW.items() if number <= 7}
    found = schema_change(
        PLATFORM, rollout("v0.1.0", "v0.1.0", schema_target=7), live="", now=live, then=[*range(1, 9)]
    )
    assert found == SchemaChange(before=7, after=8, undone=(), target=8)


def test_the_target_of_undone_migrations_of_the_product_leaves_own_ones() -> None:
    own = {500: "500_own"}
    then = [*(number for number in NOW if number <= 6), *own]
    found = schema_change(PLATFORM, rollout("v0.1.0", "v0.1.0"), live="", now=NOW | own, then=then)
    assert (found.undone, found.target) == (("007_m", "008_m", "009_m"), 6)


def test_a_version_with_traffic_that_needs_more_is_refused_and_the_newest_that_fits_is_named() -> None:
    with pytest.raises(
        RollbackRefusedError, match=r"v0\.12\.0 is active on blue and needs schema 9 .* have schema 8"
    ) as e:
        change("v0.12.0", "v0.1.0", then=8)
    assert "--method application --version v0.10.0`" in str(e.value)
    assert e.value.exit_code == 3


def test_a_version_that_the_live_schema_has_no_longer_room_for_is_not_named() -> None:
    with pytest.raises(RollbackRefusedError, match=r"v0\.1\.0 fits both schemas"):
        change("v0.12.0", "v0.1.0", then=7)


def test_without_a_version_that_fits_the_message_says_so() -> None:
    with pytest.raises(RollbackRefusedError, match="No stored release works with both schemas"):
        change("v0.12.0", "v0.1.0", then=2)


def test_a_fleet_without_traffic_that_needs_more_is_stopped() -> None:
    assert change("v0.1.0", "v0.12.0", then=8).stopped == ("green",)


def test_a_version_that_needs_what_a_returning_migration_removes_is_refused_and_one_that_fits_now_is_named() -> None:
    message = r"v0\.3\.0 is active on blue and supports schema 7, and migration 8, .* has removed what it needs"
    with pytest.raises(RollbackRefusedError, match=message) as e:
        returning("v0.3.0", now=8, contracted=(8,))
    assert "--method application --version v0.10.0`" in str(e.value)  # v0.12.0 needs schema 9, which is not there yet


def test_a_returning_migration_that_only_adds_refuses_nothing_and_a_fleet_without_traffic_is_stopped() -> None:
    assert returning("v0.3.0", now=7, contracted=()) == SchemaChange(before=7, after=9, undone=(), target=None)
    assert returning("v0.10.0", "v0.3.0", now=8, contracted=(8,)).stopped == ("green",)


def undo_stack(document: RolloutDocument, applied: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stack whose live database has these migrations."""
    monkeypatch.setattr(database_rollback, "applied_migrations", lambda _live: applied)
    platform: Any = SimpleNamespace(release_store=PLATFORM.release_store, rollout_store=SimpleNamespace())
    platform.rollout_store.read = lambda: document
    swap: Any = SimpleNamespace(records=SimpleNamespace(new_id=lambda: "20261129-020203-ab12"))
    stack = database_rollback._Stack(platform=platform, swap=swap, report=silent, continued=None)
    stack.__dict__["live"] = SimpleNamespace(lost=False, conninfo="")
    return stack


UNDOABLE = rollback_record(phase=Phase.DONE, schema_before=8, schema_after=7, applied=tuple(range(1, 9)))


def test_an_undo_is_refused_while_a_version_with_traffic_needs_a_migration_made_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = undo_stack(rollout("v0.12.0", "v0.1.0"), NOW, monkeypatch)
    message = r"v0\.12\.0 is active on blue and needs schema 9 .* would have schema 8; nothing"
    with pytest.raises(RollbackRefusedError, match=message) as e:
        stack.undo_of(stack.plan_of_undo(UNDOABLE), "test")
    assert "--method application --version v0.10.0`" in str(e.value)
    with pytest.raises(RollbackRefusedError, match=message):
        stack.plan_of_undo(UNDOABLE)  # as --dry-run


def test_an_undo_is_refused_while_a_version_with_traffic_needs_what_a_returning_migration_removes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = undo_stack(rollout("v0.3.0", "v0.1.0"), {n: NOW[n] for n in range(1, 8)}, monkeypatch)
    with pytest.raises(RollbackRefusedError, match=r"v0\.3\.0 .* migration 8, which would come back"):
        stack.undo_of(stack.plan_of_undo(UNDOABLE.changed(contracted=(8,))), "test")
    assert stack.undo_of(stack.plan_of_undo(UNDOABLE), "test").schema_after == 8


def test_an_undo_keeps_migrations_made_since_from_the_next_up_and_stops_and_starts_idle_fleets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = undo_stack(rollout("v0.1.0", "v0.12.0"), NOW, monkeypatch)
    record = stack.undo_of(stack.plan_of_undo(UNDOABLE.changed(stopped=("green",))), "test")
    assert (record.schema_before, record.schema_after, record.schema_target) == (9, 8, 8)
    assert (record.stopped, record.started) == (("green",), ())
    stack = undo_stack(rollout("v0.1.0", "v0.10.0", schema_target=7), {n: NOW[n] for n in range(1, 8)}, monkeypatch)
    record = stack.undo_of(stack.plan_of_undo(UNDOABLE.changed(stopped=("green",))), "test")
    assert (record.schema_target, record.former_target) == (None, 7)
    assert (record.stopped, record.started) == ((), ("green",))


def test_without_a_live_ledger_the_remedy_needs_no_running_database() -> None:
    with pytest.raises(RollbackRefusedError, match=r"v0\.12\.0 is active .*\n.* roll back to a later time") as e:
        change("v0.12.0", "v0.1.0", then=8, live=None)
    assert "--method application" not in str(e.value)


def test_a_database_without_a_ledger_may_have_had_all_that_the_state_and_the_checkout_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "001_mine.sql").write_text("SELECT 1;")
    (tmp_path / "002_deployed_since.sql").write_text("SELECT 1;")
    declared = {"applied": ["001_mine 0123456789ab", "003_file_gone.apache 0123456789ab", "R__views 0123456789ab"]}
    monkeypatch.setattr(module, "declared_schema", lambda _platform: declared)
    platform = cast("Platform", SimpleNamespace(workspace=SimpleNamespace(migrations=tmp_path)))
    assert known_migrations(platform) == {1: "001_mine", 2: "002_deployed_since", 3: "003_file_gone"}
