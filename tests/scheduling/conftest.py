"""A store of job records without a running stack: what jobs are run here needs none."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.runtime import Sandbox
from observatory.scheduling.records import RecordStore


@pytest.fixture
def store(tmp_path: Path, rootfs: Path) -> RecordStore:
    return RecordStore(sandbox=Sandbox(tmp_path / "home", rootfs))
