"""Fixtures of the whole suite."""

from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One real PostgreSQL with TimescaleDB for the session; take a database of your own from it."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def fresh_database(postgres: PostgresServer) -> Iterator[str]:
    """Name of a new database of the superuser's with its extensions, dropped after the test."""
    with postgres.fresh_database() as name:
        yield name
