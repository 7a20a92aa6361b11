"""A sandbox for the tools of Prometheus and Alertmanager."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.runtime import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    """A sandbox that is not started; whatever a test starts in it is ended."""
    sandbox = Sandbox(tmp_path / "home", rootfs)
    yield sandbox
    sandbox.stop(timeout=10)
