"""Sandboxes of the tests' own, over the suite's root filesystem."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.runtime import Sandbox, bubblewrap

WAYS = {"namespace": bubblewrap.NAMESPACE} | ({"privileged": bubblewrap.PRIVILEGED} if os.geteuid() == 0 else {})


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def sandbox(
    request: pytest.FixtureRequest, tmp_path: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sandbox]:
    """A sandbox that is not started, by each way in that this user may try; stopped afterwards."""
    monkeypatch.setattr(bubblewrap, "entry", lambda _rootfs: request.param)
    sandbox = Sandbox(tmp_path / "home", rootfs)
    yield sandbox
    sandbox.stop(timeout=10)


@pytest.fixture
def started(sandbox: Sandbox) -> Sandbox:
    """A started sandbox without programs."""
    sandbox.start()
    return sandbox
