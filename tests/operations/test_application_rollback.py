"""A rollback to any stored version, on a platform without pre-deployment tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import Manifest
from observatory.operations import application_rollback
from observatory.platforms.local.platform import LocalPlatform
from observatory.workspace import Workspace
from tests.delivery.environment import simulation

STORED = Manifest(name="storage-service", version="v0.1.0", sha256="a" * 64, schema_min=0, schema_max=8)


@pytest.mark.parametrize("rollback", ["roll_back_to_version", "plan_rollback_to_version"])
def test_it_is_refused_before_the_deployment_under_way_is_undone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rollback: str
) -> None:
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")

    def undone(*_: Any, **__: Any) -> None:
        raise AssertionError("the deployment under way was undone")

    without_tests = replace(simulation().environment(), trial=None)
    monkeypatch.setattr(application_rollback, "required_outputs", lambda *_, **__: {})
    monkeypatch.setattr(application_rollback, "checked_release", lambda *_: STORED)
    monkeypatch.setattr(application_rollback, "check_schema", lambda *_: None)
    monkeypatch.setattr(application_rollback, "delivery_environment", lambda *_, **__: without_tests)
    monkeypatch.setattr(application_rollback, "_other_under_way", lambda *_: True)
    monkeypatch.setattr(application_rollback, "roll_back", undone)
    monkeypatch.setattr(application_rollback, "preview_rollback", undone)
    monkeypatch.setattr(LocalPlatform, "administrator", lambda *_: "postgresql://127.0.0.1:1/nowhere")
    reason: dict[str, Any] = {"reason": "a test"} if rollback == "roll_back_to_version" else {}
    with pytest.raises(DeliveryRefusedError, match=r"has no pre-deployment tests; .* roll back with --emergency"):
        getattr(application_rollback, rollback)(Workspace(root=tmp_path, stack="local"), version="v0.1.0", **reason)
