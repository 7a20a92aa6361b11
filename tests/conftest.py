"""Fixtures of the whole suite."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.runtime import ensure_rootfs
from tests.support.postgres import PostgresServer, community_server, postgres_server


def pytest_configure() -> None:
    """Let commands be interrupted where a shell runs the suite in the background: children inherit what is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the files with the longest tests first; skip, and say so, what needs a program that no registry carries."""
    items.sort(key=lambda item: "stack" not in item.path.parts)  # whole stacks: else the last is waited for alone
    if shutil.which("pulumi") is None:
        for item in items:
            if item.get_closest_marker("cli"):
                item.add_marker(pytest.mark.skip(reason="needs the pulumi CLI on PATH"))


@pytest.fixture(scope="session")
def rootfs() -> Path:
    """The root filesystem of the checkout, built first where it is missing."""
    return ensure_rootfs(Path(__file__).resolve().parent.parent / ".observatory/cache")


@pytest.fixture(scope="session")
def postgres(rootfs: Path) -> Iterator[PostgresServer]:
    """One real PostgreSQL with TimescaleDB for the session; take a database of your own from it."""
    with postgres_server(rootfs) as server:
        yield server


@pytest.fixture(scope="session")
def community_postgres(rootfs: Path) -> Iterator[PostgresServer]:
    """One real PostgreSQL with TimescaleDB's community edition for the session, where there is one."""
    server = community_server(rootfs)
    if server is None:
        pytest.skip("needs TimescaleDB's community edition: OBSERVATORY_PG_PREFIX names no installation")
    with server as running:
        yield running


@pytest.fixture
def fresh_database(postgres: PostgresServer) -> Iterator[str]:
    """Name of a new database of the superuser's with its extensions, dropped after the test."""
    with postgres.fresh_database() as name:
        yield name
