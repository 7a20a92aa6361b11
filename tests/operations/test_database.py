"""What `deploy database` does around the migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.database import Event, LockTimeoutError
from observatory.database.migrations.events import EventKind
from observatory.operations import migration_targets
from observatory.operations.database import _events_to, _poolers_reconnected
from observatory.operations.migration_targets import migration_target
from observatory.progress import Phase, Progress
from observatory.workspace import Workspace

WARNING = "pgbouncer at 127.0.0.1:6432 kept its connections"


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize(("kind", "expected"), [("applying", 1), ("backup", 0)])
def test_poolers_are_reconnected_once_after_files_ran_also_when_a_later_file_failed(
    kind: EventKind, expected: int, failing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, reports = list[object](), list[Progress]()

    def reconnect(platform: object) -> tuple[str, ...]:
        asked.append(platform)
        return (WARNING,)

    monkeypatch.setattr(migration_targets, "open_platform", lambda _workspace: "the platform")
    monkeypatch.setattr(migration_targets, "reconnect_poolers", reconnect)
    place = migration_target(Workspace(root=tmp_path, stack="local"))

    def deploy() -> None:
        with (
            _poolers_reconnected(place, reports.append) as on_change,
            _events_to(reports.append, [], on_change) as on_event,
        ):
            for name in ("500_a", "501_b"):
                on_event(Event(kind=kind, migration=name, detail=""))
            assert asked == []
            if failing:
                raise LockTimeoutError("501_b is blocked")

    if failing:
        with pytest.raises(LockTimeoutError, match="501_b"):
            deploy()
    else:
        deploy()

    assert len(asked) == expected
    assert [each.task for each in reports if each.phase is Phase.WARNED] == [WARNING] * expected
