"""What an interrupted plan of the program raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from observatory.delivery.environment import HostsError
from observatory.documents.rollout import FileRolloutStore
from observatory.engines.embedded import EngineError, Interrupted
from observatory.platforms.local.hosts import LocalHosts


def hosts(tmp_path: Path, error: Exception) -> LocalHosts:
    def plan() -> Any:
        raise error

    unused: Any = None
    return LocalHosts(
        rollout=FileRolloutStore(tmp_path), ports={}, sandbox=unused, preview=unused, plan=plan, up=lambda: None
    )


def test_an_interrupted_plan_is_an_interruption_and_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        hosts(tmp_path, Interrupted("interrupted by SIGTERM")).changes()


def test_a_failed_plan_is_a_failure_of_the_hosts(tmp_path: Path) -> None:
    with pytest.raises(HostsError, match="cannot be planned: the program is wrong"):
        hosts(tmp_path, EngineError("the program is wrong")).changes()
