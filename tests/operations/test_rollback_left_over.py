"""What a killed rollback of the database has left before it recorded anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from observatory.operations import database_exchange as module
from observatory.progress import silent


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rollbacks/1.access", 1),
        (f"rollbacks/.1.access.{2**31 - 1}-0.partial", 1),  # no process has this id
        ("data/postgres-next-1", 1),
        ("data/other", 0),
    ],
)
def test_up_removes_what_a_killed_command_left_before_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: int
) -> None:
    left = tmp_path / name
    left.parent.mkdir()
    left.write_text("verifiers of passwords")

    @contextmanager
    def locked(*_arguments: object) -> Iterator[None]:
        yield

    continued: list[object] = []
    monkeypatch.setattr(module, "restore_lock", locked)
    monkeypatch.setattr(module, "continue_interrupted", lambda *_arguments: continued.append(_arguments))
    platform = SimpleNamespace(workspace=SimpleNamespace(home=tmp_path, sandbox=None))

    module.finish_interrupted(cast("Any", platform), silent)

    assert len(continued) == found
