"""A store of job records without a running stack, which the jobs of these tests do not need."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.runtime import Sandbox
from observatory.scheduling.records import RecordStore


@pytest.fixture
def store(tmp_path: Path, rootfs: Path) -> RecordStore:
    return RecordStore(sandbox=Sandbox(tmp_path / "home", rootfs))
