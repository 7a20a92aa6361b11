"""Fixtures: a shared migrated database and service, and a factory of further services."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from tests.service.harness import Service, StorageDatabase, running_service, storage_database
from tests.support.postgres import PostgresServer


class StartService(Protocol):
    """Starts a service with the given settings, and stops it after the test."""

    def __call__(
        self, database: StorageDatabase, *, wait: bool = True, also: Mapping[str, str] | None = None, **settings: str
    ) -> Service: ...


@pytest.fixture(scope="session")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageDatabase]:
    with storage_database(postgres, tmp_path_factory.mktemp("storage")) as database:
        yield database


@pytest.fixture(scope="session")
def service(database: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(database, tmp_path_factory.mktemp("service"), {"LOG_LEVEL": "DEBUG"}) as service:
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="session")
def client(service: Service) -> httpx.Client:
    return service.client()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartService]:
    with ExitStack() as stack:

        def start_service(
            database: StorageDatabase, *, wait: bool = True, also: Mapping[str, str] | None = None, **settings: str
        ) -> Service:
            service = stack.enter_context(running_service(database, tmp_path, {**(also or {}), **settings}))
            if wait:
                service.wait_until_ready()
            return service

        yield start_service


@pytest.fixture(scope="session")
def costs(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageDatabase]:
    """A database whose aggregate of costs is filled by the tests."""
    with storage_database(postgres, tmp_path_factory.mktemp("costs"), schema=4) as database:
        database.execute(f"GRANT SELECT ON cost_analysis_hourly TO {database.role}")
        yield database
