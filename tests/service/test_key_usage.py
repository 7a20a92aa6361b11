"""The last use of a key is recorded."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest

from service.storage_service import key_usage
from service.storage_service.database import Database
from service.storage_service.key_usage import KeyUsage
from service.storage_service.settings import Settings
from tests.service.conftest import StartService
from tests.service.harness import StorageDatabase, environment, storage_database
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE_S

GRANT = "UPDATE (last_used_at) ON api_keys"


def key_id(database: StorageDatabase, key: str) -> str:
    return str(database.execute("SELECT id FROM api_keys WHERE key_prefix = %s", key[:8])[0][0])


def last_used(database: StorageDatabase, key: str) -> datetime | None:
    found: datetime | None = database.execute("SELECT last_used_at FROM api_keys WHERE key_prefix = %s", key[:8])[0][0]
    return found


def with_usage(database: StorageDatabase, use: Callable[[KeyUsage], Awaitable[None]], **settings: str) -> None:
    """Run it in this process, without its timer."""

    async def run() -> None:
        connections = Database(Settings.from_environment(environment(database, 8000, settings)))
        await connections.open()
        try:
            await use(KeyUsage(connections))
        finally:
            await connections.close()

    asyncio.run(run())


def test_last_use_is_written_when_the_service_shuts_down(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    with storage_database(postgres, tmp_path) as database:
        database.execute(f"GRANT {GRANT} TO {database.role}")
        unused = database.add_key()
        service = start(database)
        assert service.client().get("/v1/traces").status_code == 200
        service.terminate()
        assert service.process.wait(timeout=PATIENCE_S) == 0
        assert last_used(database, database.key) is not None
        assert last_used(database, unused) is None


def test_last_use_is_written_once_a_minute(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key_usage.INTERVAL_S == 60
    monkeypatch.setattr(key_usage, "INTERVAL_S", 3600.0)  # a busy machine takes a part of a minute for this
    with storage_database(postgres, tmp_path) as database:
        database.execute(f"GRANT {GRANT} TO {database.role}")
        written: list[bool] = []

        async def use(usage: KeyUsage) -> None:
            for age in (None, "30 minutes", "61 minutes"):
                database.execute("UPDATE api_keys SET last_used_at = now() - %s::interval", age)
                before = last_used(database, database.key)
                usage.note(key_id(database, database.key))
                await usage.record()
                written.append(last_used(database, database.key) != before)

        with_usage(database, use)
        assert written == [True, False, True]


def test_missing_privilege_is_logged_once(database: StorageDatabase, caplog: pytest.LogCaptureFixture) -> None:
    async def use(usage: KeyUsage) -> None:
        for _ in range(2):
            usage.note(key_id(database, database.key))
            await usage.record()

    with caplog.at_level(logging.WARNING):
        with_usage(database, use)
    assert [record.message for record in caplog.records if "not recorded" in record.message] == [
        "the last use of API keys is not recorded: GRANT UPDATE (last_used_at) ON api_keys to this role"
    ]
    assert last_used(database, database.key) is None


def test_last_use_is_kept_while_the_database_is_unavailable(database: StorageDatabase) -> None:
    async def use(usage: KeyUsage) -> None:
        usage.note(key_id(database, database.key))
        await usage.record()
        assert usage._used

    url = f"postgresql://nobody@127.0.0.1:{free_port()}/nowhere"
    with_usage(database, use, DATABASE_URL=url, POOL_TIMEOUT_SECONDS="0.1")
