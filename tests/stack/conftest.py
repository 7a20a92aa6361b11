"""A whole `local` stack for the tests of this folder: one shared, and fresh ones for tests that break things."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.checkout import UP_TIMEOUT_S, Checkout, jobs_at_another_time
from tests.support.waiting import until


@contextlib.contextmanager
def a_checkout(directory: Path, rootfs: Path) -> Iterator[Checkout]:
    """Yield a copy of the checkout, and end what is left of its stack whatever happened."""
    checkout = Checkout.copy(directory, rootfs=rootfs)
    checkout.configure(schedule=jobs_at_another_time(datetime.now(UTC)))
    try:
        yield checkout
    finally:
        checkout.kill_all()


@pytest.fixture(scope="package")
def shared_stack(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack that is up until this process has run its last test of this folder."""
    with a_checkout(tmp_path_factory.mktemp("stack"), rootfs) as checkout:
        checkout.run("up", "--engine", "embedded")
        yield checkout


@pytest.fixture(scope="module")
def stack(shared_stack: Checkout) -> Checkout:
    """The shared stack, well, whatever the file before did to it. Tests leave it as they found it.

    Tests depend on nothing that another one may change: which login is active, how many backups, traces, notifications
    and log lines there are, and whether PostgreSQL's archiver waits after failures.
    """
    until(shared_stack.is_well, "the shared stack to be well", timeout_s=UP_TIMEOUT_S)
    return shared_stack


@pytest.fixture
def checkout(tmp_path: Path, rootfs: Path) -> Iterator[Checkout]:
    """A fresh checkout whose stack is not up."""
    with a_checkout(tmp_path, rootfs) as fresh:
        yield fresh
