"""Sandboxes of the tests' own, over the suite's root filesystem."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.runtime import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    """A sandbox that is not started, of the user that runs the suite; stopped afterwards."""
    sandbox = Sandbox(tmp_path / "home", rootfs)
    yield sandbox
    sandbox.stop(timeout=10)


@pytest.fixture
def started(sandbox: Sandbox) -> Sandbox:
    """A started sandbox without programs."""
    sandbox.start()
    return sandbox
