"""Fixtures of the storage service's tests: a migrated database and a service on it, shared; others start their own."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from tests.service.harness import Service, StorageDatabase, running_service, storage_database
from tests.support.postgres import PostgresServer

# The public shape of the aggregate; who makes and refreshes it is the schema's affair.
AGGREGATE = """
CREATE TABLE cost_analysis_hourly (
    bucket timestamptz, provider text, model text, environment text, user_id text, request_count bigint,
    total_cost_usd numeric, prompt_cost_usd numeric, completion_cost_usd numeric, total_tokens bigint
)
"""


class StartService(Protocol):
    """Starts a service with settings of its own, and ends it after the test."""

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
    with storage_database(postgres, tmp_path_factory.mktemp("costs")) as database:
        database.execute(AGGREGATE)
        database.execute(f"GRANT SELECT ON cost_analysis_hourly TO {database.role}")
        database.execute("UPDATE observatory.schema_migrations SET version = 4 WHERE version = 3")
        yield database
