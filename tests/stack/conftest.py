"""A whole `local` stack for the tests of this folder: one shared, and fresh ones for tests that break things."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import Checkout


@contextlib.contextmanager
def a_checkout(directory: Path, rootfs: Path) -> Iterator[Checkout]:
    """Yield a copy of the checkout, and end what is left of its stack whatever happened."""
    checkout = Checkout.copy(directory, rootfs=rootfs)
    try:
        yield checkout
    finally:
        checkout.kill_all()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack that is up. Tests leave it as they found it."""
    with a_checkout(tmp_path_factory.mktemp("stack"), rootfs) as checkout:
        checkout.run("up", "--engine", "embedded")
        yield checkout


@pytest.fixture
def checkout(tmp_path: Path, rootfs: Path) -> Iterator[Checkout]:
    """A fresh checkout whose stack is not up."""
    with a_checkout(tmp_path, rootfs) as fresh:
        yield fresh
