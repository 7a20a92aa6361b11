"""The record of a rollback of the database, for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from observatory.backups.rollback.record import Phase, RollbackRecord


def rollback_record(*, phase: Phase, **changes: Any) -> RollbackRecord:
    """Return a record in a phase."""
    values: dict[str, Any] = {
        "id": "20261129-010203-ab12",
        "kind": "rollback",
        "target": "2026-11-29T01:00:00Z",
        "source": "repository 1",
        "actor": "alice",
        "reason": "test",
        "at": datetime.now(UTC),
        "schema_before": 8,
        "schema_after": 8,
    }
    return RollbackRecord(phase=phase, **values | changes)
