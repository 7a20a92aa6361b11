"""A database that is there answers, however busy the machine is."""

from __future__ import annotations

import pytest

from observatory.database import audit_table
from observatory.operations import audit, deployment_lock


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_lock, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(audit_table, "CONNECT_TIMEOUT_S", 60)
    monkeypatch.setattr(audit, "CLOSE_S", 60.0)
