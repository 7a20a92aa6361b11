"""A workflow with concurrent deployments; its steps run on a real stack in tests/stack."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.delivery import approvals
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import RolledBackError, TakenOverError
from observatory.delivery.releases import Manifest
from observatory.delivery.rollback import roll_back
from observatory.documents.journal import FileJournal
from observatory.documents.rollout import RolloutDocument
from observatory.operations import NotPermittedError, application
from observatory.operations import release_workflow as workflow
from observatory.operations.release_checklist import ReleasePlan
from observatory.operations.verification import StackCheck, StackVerification
from observatory.platforms import platform_of
from observatory.platforms.local.platform import LocalPlatform
from observatory.progress import Phase, Progress, silent
from observatory.settings import LocalSettings
from observatory.workspace import Workspace
from tests.delivery.environment import NEW, MemoryStore, simulation
from tests.delivery.faults import blue_green
from tests.support.postgres import PostgresServer


def test_an_emergency_rollback_during_preparation_stops_the_workflow(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, stack="local")
    platform = platform_of(workspace, LocalSettings())
    current = workspace.rollout.create(document_of("v0.1.0"))
    with workflow._not_taken_over(platform):
        current = workspace.rollout.compare_and_set(current, current.model_copy(update={"schema_target": 6}))
    with pytest.raises(TakenOverError, match=r"fencing number 1, expected 0\), so the service was not changed"):  # noqa: SIM117
        with workflow._not_taken_over(platform):
            workspace.rollout.compare_and_set(current, current.model_copy(update={"fencing": 1}))


WRONG = StackVerification(
    stack="local", checks=(StackCheck(name="database", verdict="failed", detail="an index was added", seconds=0.0),)
)


def test_a_failed_verification_rolls_back_only_what_was_deployed_shortly_before(tmp_path: Path) -> None:
    """A pipeline that deploys the live version again must not return to an older one because of something else."""
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    workspace = Workspace(root=tmp_path, stack="local")
    first = document_of("v0.1.0")
    stack = simulation(store=MemoryStore(first))
    stack.record = FileJournal(workspace.journal, silent).record  # type: ignore[method-assign]
    stack.wall_offset = time.time() - 100
    live = deploy(stack.environment(), blue_green())

    def is_new(window_s: float, *, before: int) -> bool:
        settings = LocalSettings.model_validate({"delivery": {"rollback_window_seconds": window_s}})
        return workflow._is_new(platform_of(workspace, settings), live, before)

    assert is_new(0, before=live.fencing - 1)  # this workflow has deployed it
    assert is_new(3600, before=live.fencing)  # one that was killed has
    assert not is_new(0, before=live.fencing)

    reports: list[Progress] = []
    platform = platform_of(workspace, LocalSettings())
    workflow._roll_back_if_wrong(platform, WRONG, new=None, report=reports.append)
    [warning] = reports
    assert warning.phase is Phase.WARNED
    assert "an index was added. The version was live before, so it is not rolled back" in warning.task


def test_a_version_that_an_operator_has_rolled_back_during_the_verification_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    stack = simulation()
    live = deploy(stack.environment(), blue_green())

    def roll_back_again(_workspace: Workspace, *, reason: str, only: str, **_: object) -> None:
        roll_back(stack.environment(), actor="ci", reason=reason, only=only)

    monkeypatch.setattr(workflow, "roll_back_application", roll_back_again)
    roll_back(stack.environment(), actor="operator", reason="pages")
    platform = platform_of(Workspace(root=tmp_path, stack="local"), LocalSettings())
    with pytest.raises(RolledBackError, match="another command has rolled it back meanwhile"):
        workflow._roll_back_if_wrong(platform, WRONG, new=live.deployment, report=silent)


def test_a_window_that_closes_during_the_migrations_does_not_stop_the_workflow(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end with exit code 3, "nothing changed", and with a migrated database until the next window."""
    window = '{ days: [tue], opens: "09:00", closes: "12:00", timezone: Europe/Berlin }'
    (tmp_path / "Pulumi.local.yaml").write_text(f"config:\n  llm-observatory:delivery: {{ windows: [{window}] }}\n")
    workspace, first = Workspace(root=tmp_path, stack="local"), document_of("v1.0.0")
    workspace.rollout.create(first)
    stack, closed = simulation(store=MemoryStore(first)), list[bool]()
    manifest = Manifest(name="storage-service", version="v2.0.0", sha256=NEW, schema_min=0, schema_max=8)
    plan = ReleasePlan(version="v2.0.0", checklist=(), schema_version=7, migrations=("008_x.sql",), deployment=None)

    def migrate(*_: Any) -> workflow._Prepared:
        closed.append(True)
        return workflow._Prepared(backup_label="20261130-120000F", applied=plan.migrations)

    opens = datetime(2026, 12, 1, 9, tzinfo=UTC)
    monkeypatch.setattr(approvals, "next_opening", lambda windows, _now: opens if closed and windows else None)
    monkeypatch.setattr(application, "required_outputs", lambda *_, **__: {})
    monkeypatch.setattr(application, "check_schema", lambda *_: None)
    monkeypatch.setattr(application, "_lower_priority", lambda: None)
    monkeypatch.setattr(application, "delivery_environment", lambda *_, **__: stack.environment())
    monkeypatch.setattr(workflow, "_plan", lambda *_, **__: plan)
    monkeypatch.setattr(workflow, "_prepare", migrate)
    monkeypatch.setattr(workflow, "settled_status", lambda _: None)
    monkeypatch.setattr(workflow, "verify", lambda *_, **__: StackVerification(stack="local", checks=()))
    for module in (workflow, application):
        monkeypatch.setattr(module, "checked_release", lambda *_: manifest)
    with postgres.fresh_database() as name:
        conninfo = postgres.conninfo(dbname=name)
        monkeypatch.setattr(LocalPlatform, "administrator", lambda *_: conninfo)
        monkeypatch.setattr(workflow, "database_target", lambda _: SimpleNamespace(conninfo=conninfo))
        done = workflow.deploy_release(workspace, version="v2.0.0")
        with pytest.raises(NotPermittedError, match="no deployment window is open"):
            application.deploy_application(workspace, version="v2.0.0", strategy="blue-green")
    assert (closed, done.rollout.active_fleet) == ([True], "green")


def document_of(version: str) -> RolloutDocument:
    return RolloutDocument.first(version=version, sha256="a" * 64, active_fleet="blue")
