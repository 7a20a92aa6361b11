"""What a rotation refuses; it runs on a real stack in tests/stack/test_access.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from observatory import operations
from observatory.engines import embedded
from observatory.workspace import Workspace


def test_a_missing_document_of_the_logins_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: llm-observatory\nruntime: python\n")
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    workspace = Workspace(root=tmp_path, stack="local")
    with pytest.raises(operations.StackNotUpError):
        operations.rotate_passwords(workspace)
    monkeypatch.setattr(embedded, "resources", lambda _: [SimpleNamespace(name="access")])
    with pytest.raises(operations.OperationError, match=r"/access/local\.json is missing: run `observatory up`, which"):
        operations.rotate_passwords(workspace)
