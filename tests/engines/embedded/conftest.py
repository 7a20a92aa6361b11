"""Fixtures of the engine's tests: a lab per test, and the CLI where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.embedded.lab import Lab

MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(tmp_path: Path) -> MakeLab:
    """Return a function that makes labs, each with a project and a backend of its own."""
    made: list[Lab] = []

    def make(config: str = "") -> Lab:
        made.append(Lab(tmp_path / f"lab{len(made)}", config=config))
        return made[-1]

    return make


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    """Return one lab."""
    return make_lab()
