"""What a rotation refuses; it runs on a real stack in tests/stack/test_access.py."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from observatory import operations
from observatory.database.advisory_locks import DEPLOYMENT_LOCK, session_lock
from observatory.database.connection import connect
from observatory.delivery.errors import LockLostError
from observatory.documents.logins import AccessDocument, utc_now
from observatory.engines import embedded
from observatory.operations import deployment_lock, password_rotation
from observatory.workspace import Workspace
from tests.support.postgres import PostgresServer
from tests.support.sessions import terminate_others


def test_a_missing_document_of_the_logins_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: llm-observatory\nruntime: python\n")
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    workspace = Workspace(root=tmp_path, stack="local")
    with pytest.raises(operations.StackNotUpError):
        operations.rotate_passwords(workspace)
    monkeypatch.setattr(embedded, "resources", lambda _: [SimpleNamespace(name="access")])
    with pytest.raises(operations.OperationError, match=r"/access/local\.json is missing: run `observatory up`, which"):
        operations.rotate_passwords(workspace)


def test_a_rotation_that_has_lost_its_lock_stops_before_the_next_write(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: llm-observatory\nruntime: python\n")
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    workspace = Workspace(root=tmp_path, stack="local")
    workspace.access.create(AccessDocument.first(utc_now()))
    monkeypatch.setattr(embedded, "resources", lambda _: [SimpleNamespace(name="access")])
    monkeypatch.setattr(password_rotation, "audited", lambda *_, **__: nullcontext())
    monkeypatch.setattr(password_rotation, "up", lambda *_, **__: None)
    with postgres.fresh_database() as name, ExitStack() as other:
        conninfo = postgres.conninfo(dbname=name)
        monkeypatch.setattr(deployment_lock, "declared_schema", lambda _: {"conninfo": conninfo})

        def lose_the_lock_while_it_waits(*_: object) -> list[str]:
            terminate_others(conninfo)
            connection = other.enter_context(connect(conninfo, purpose="deploy application v2"))
            other.enter_context(session_lock(connection, DEPLOYMENT_LOCK, wait_s=60))
            return ["app"]

        monkeypatch.setattr(password_rotation, "_unused", lose_the_lock_while_it_waits)
        with pytest.raises(LockLostError, match=r"deploy application v2.* holds it now"):
            operations.rotate_passwords(workspace, roles=("app",))
    document = workspace.access.read()
    assert document
    assert (document.active_login("app"), document.app.retiring, document.app.a.generation) == ("app_b", True, 1)
