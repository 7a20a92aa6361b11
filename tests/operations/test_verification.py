"""The verdicts of a verification; its checks run on a real stack in tests/stack."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from observatory.delivery.environment import HostsError
from observatory.operations import verification
from observatory.workspace import Workspace


def test_each_verdict_has_its_cause_and_checks_past_the_timeout_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def fails() -> str:
        raise HostsError("blue answers as v0.1.0")

    def cannot_connect() -> str:
        raise ConnectionRefusedError("refused")

    def takes_long() -> str:
        now[0] += 20
        return "done"

    checks = {"bad": fails, "down": cannot_connect, "long": takes_long, "last": takes_long}
    monkeypatch.setattr(verification, "_checks", lambda *_, **__: checks)
    monkeypatch.setattr(verification, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = verification.verify(Workspace(root=tmp_path, stack="local"), timeout_s=10)
    assert [(check.name, check.verdict, check.seconds) for check in found.checks] == [
        ("bad", "failed", 0), ("down", "unknown", 0), ("long", "passed", 20), ("last", "unknown", 0),
    ]  # fmt: skip
    assert not found.passed
