"""A deployment that waited for the lock is checked again: the stack is not as it was when the command started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.cli.interrupted import message_of
from observatory.delivery.preparation import prepare
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.interruption import interruptible
from observatory.operations import NotPermittedError, application, release_workflow
from observatory.operations.deployment_lock import HeldDeploymentLock, deployment_lock, waiting_for_lock
from observatory.platforms.local.platform import LocalPlatform
from observatory.workspace import Workspace
from tests.delivery.environment import simulation
from tests.delivery.faults import blue_green
from tests.support.postgres import PostgresServer

PATCH = Manifest(name="storage-service", version="v1.0.1", sha256="b" * 64, schema_min=0, schema_max=8)
WAIT_S = 60.0


@pytest.fixture
def conninfo(postgres: PostgresServer) -> Iterator[str]:
    with postgres.fresh_database() as name:
        yield postgres.conninfo(dbname=name)


def test_a_patch_that_became_a_major_change_while_it_waited_needs_its_approval(
    conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Pulumi.local.yaml").write_text("config:\n  llm-observatory:delivery: { approval: [major] }\n")
    workspace = Workspace(root=tmp_path, stack="local")
    live = RolloutDocument.first(version="v1.0.0", sha256="a" * 64, active_fleet="blue")
    current = workspace.rollout.create(live)
    checked = threading.Event()

    def schema(*_: Any) -> None:
        checked.set()

    monkeypatch.setattr(application, "required_outputs", lambda *_, **__: {})
    monkeypatch.setattr(application, "checked_release", lambda *_: PATCH)
    monkeypatch.setattr(application, "check_schema", schema)
    monkeypatch.setattr(application, "_lower_priority", lambda: None)
    monkeypatch.setattr(application, "delivery_environment", lambda *_, **__: simulation().environment())
    monkeypatch.setattr(LocalPlatform, "administrator", lambda *_: conninfo)

    def deploy_a_major_version() -> None:
        assert checked.wait(WAIT_S)  # the patch was permitted, and waits now
        workspace.rollout.compare_and_set(current, current.with_fleet("blue", version="v2.0.0", sha256="c" * 64))
        done.set()

    def hold() -> None:
        with deployment_lock(Workspace(root=tmp_path, stack="other"), conninfo, command="deploy application v2.0.0"):
            held.set()
            deploy_a_major_version()

    done, held, holding = threading.Event(), threading.Event(), threading.Thread(target=hold)
    holding.start()
    assert held.wait(WAIT_S)
    with waiting_for_lock(WAIT_S), pytest.raises(NotPermittedError, match=r"v1\.0\.1 is a major change"):
        application.deploy_application(workspace, version="v1.0.1", strategy="blue-green")
    assert done.wait(WAIT_S)
    holding.join()


def test_an_interrupt_while_waiting_says_nothing_of_the_deployment_that_holds_the_lock(
    conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice to roll back would be about the other command's deployment."""
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    workspace = Workspace(root=tmp_path, stack="local")
    current = workspace.rollout.create(RolloutDocument.first(version="v1.0.0", sha256="a" * 64, active_fleet="blue"))
    held, waiting, interrupted = threading.Event(), threading.Event(), threading.Event()
    acquire = HeldDeploymentLock.acquire

    def wait(lock: HeldDeploymentLock, wait_s: float) -> None:
        if held.is_set():
            waiting.set()
        acquire(lock, wait_s)

    def hold() -> None:
        with deployment_lock(Workspace(root=tmp_path, stack="other"), conninfo, command="deploy application v2.0.0"):
            held.set()
            assert waiting.wait(WAIT_S)
            begun = prepare(simulation().environment(), current, blue_green())
            workspace.rollout.compare_and_set(current, current.model_copy(update={"deployment": begun}))
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(WAIT_S)

    monkeypatch.setattr(HeldDeploymentLock, "acquire", wait)
    monkeypatch.setattr(release_workflow, "database_target", lambda *_: SimpleNamespace(conninfo=conninfo))
    holding = threading.Thread(target=hold)
    holding.start()
    assert held.wait(WAIT_S)
    with interruptible(), waiting_for_lock(WAIT_S), pytest.raises(KeyboardInterrupt) as raised:
        release_workflow.deploy_release(workspace, version="v1.0.1")
    interrupted.set()
    holding.join()
    assert "the fleets and their traffic were not changed" in message_of(raised.value, ["release", "deploy", "v1.0.1"])
