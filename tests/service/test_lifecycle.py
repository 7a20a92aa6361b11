"""Readiness, an unavailable database, and the shutdown of a process."""

import asyncio
import threading
from pathlib import Path

import httpx
import psycopg
import pytest

from service.storage_service.database import Condition, Database
from service.storage_service.settings import Settings
from tests.service.conftest import StartService
from tests.service.harness import (
    Background,
    Service,
    StorageDatabase,
    environment,
    item,
    post,
    storage_database,
)
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow


def ready(client: httpx.Client) -> int:
    return client.get("/health/ready").status_code


def test_healthy_instance_reports_ok(service: Service) -> None:
    client, answers = service.client(), list[httpx.Response]()

    def healthy() -> bool:  # again, where an earlier test has ended every session of the database
        answers.append(client.get("/health"))
        return answers[-1].status_code == 200

    until(healthy, "the service to be healthy")
    assert answers[-1].json() == {
        "status": "ok",
        "version": "v0.0.0-dev",
        "fleet": "blue",
        "checks": {"database": {"status": "ok", "detail": ""}, "schema": {"status": "ok", "detail": ""}},
    }


def test_health_needs_no_key(service: Service) -> None:
    service.wait_until_ready()  # again, where an earlier test has ended every session of the database
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
        assert httpx.get(f"http://127.0.0.1:{service.port}{path}").status_code == 200


def test_service_starts_without_a_database(database: StorageDatabase, start: StartService) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/nowhere"
    service = start(database, wait=False, DATABASE_URL=url, POOL_TIMEOUT_SECONDS="0.1")
    service.wait_until_live()
    client = service.client()
    until(lambda: "refused" in client.get("/health").text, "the cause in /health")
    assert client.get("/health").status_code == 503
    assert client.get("/health").json()["checks"]["database"]["status"] == "failed"
    assert ready(client) == 503
    assert post(client, item()).status_code == 503


def test_wrong_password_is_reported(database: StorageDatabase, start: StartService, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    service = start(database, wait=False, DATABASE_PASSWORD_FILE=str(wrong))
    service.wait_until_live()
    client = service.client()
    until(lambda: "password authentication failed" in client.get("/health").text, "the cause in /health")
    assert ready(client) == 503


def test_service_recovers_when_the_database_is_available_again(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    with storage_database(postgres, tmp_path) as database:
        service = start(database, POOL_TIMEOUT_SECONDS="0.2")
        client = service.client()
        # The service is ready before the pool has a connection, and this one waits only a moment for it.
        until(lambda: post(client, item()).status_code == 201, "the first write")
        with database.unavailable():
            answer = post(client, item())
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            until(lambda: ready(client) == 503, "not ready")
            assert client.get("/health/live").status_code == 200
        until(lambda: ready(client) == 200, "ready again")
        sent = item()
        until(lambda: post(client, sent).status_code == 201, "writes again")
        assert database.count(sent["trace_id"]) == 1
        service.close()


def test_changed_password_is_picked_up(postgres: PostgresServer, start: StartService, tmp_path: Path) -> None:
    with storage_database(postgres, tmp_path) as database:
        service = start(database)
        client = service.client()
        assert post(client, item()).status_code == 201
        database.change_password()
        database.disconnect()
        until(lambda: post(client, item()).status_code == 201, "writes with the new password")
        until(lambda: ready(client) == 200, "ready with the new password")
        service.close()


def test_change_of_login_fails_no_request(postgres: PostgresServer, start: StartService, tmp_path: Path) -> None:
    """Not even while the file names a login that does not exist yet."""
    with storage_database(postgres, tmp_path) as database:
        other, answers = f"{database.role}_b", set[int]()
        service = start(database, POOL_MIN="3")
        client = service.client()

        def reported(text: str) -> bool:
            answers.add(post(client, item()).status_code)
            return text in client.get("/health").text

        def moved() -> bool:
            answers.add(post(client, item()).status_code)
            sessions = "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE usename IN (%s, %s)"
            return database.execute(sessions, database.role, other) == [(other,)]

        try:
            database.password_file.write_text(f"{other}\nsecret\n", encoding="utf-8")
            until(lambda: reported("authentication failed"), "the login to be tried")
            database.execute(f"CREATE ROLE {other} LOGIN PASSWORD 'secret' IN ROLE {database.role}")
            until(moved, "the sessions to move")
            assert answers == {201}
        finally:
            service.close()
            database.execute(f"DROP ROLE IF EXISTS {other}")


def test_lost_connections_fail_no_request(postgres: PostgresServer, start: StartService, tmp_path: Path) -> None:
    with storage_database(postgres, tmp_path) as database:
        service = start(database, POOL_MIN="5")
        client = service.client()
        for _ in range(3):
            database.disconnect()
            assert post(client, item()).status_code == 201
        service.close()


@pytest.mark.parametrize("version", [2, None], ids=["too old", "none"])
def test_service_is_not_ready_on_an_unsupported_schema(
    postgres: PostgresServer, start: StartService, tmp_path: Path, version: int | None
) -> None:
    with storage_database(postgres, tmp_path) as database:
        database.execute("DELETE FROM observatory.schema_migrations WHERE version <> 1")
        if version is None:
            database.execute("DELETE FROM observatory.schema_migrations")
        else:
            database.execute("UPDATE observatory.schema_migrations SET version = %s", version)
        service = start(database, wait=False)
        service.wait_until_live()
        client = service.client()
        expected = f"schema version is {version}, expected at least 3: apply the pending migrations"
        reachable = {"status": "ok", "detail": ""}

        def checked() -> bool:
            checks = client.get("/health").json()["checks"]
            return expected in checks["schema"]["detail"] and checks["database"] == reachable

        until(checked, "the version in /health, of a database that responds")
        assert ready(client) == 503
        service.close()


@pytest.mark.parametrize(("header", "status"), [("", 200), ("-- phase: expand", 200), ("-- phase: contract", 503)])
def test_newer_schema_is_supported_until_a_contract_migration(
    postgres: PostgresServer, start: StartService, tmp_path: Path, header: str, status: int
) -> None:
    with storage_database(postgres, tmp_path) as database:
        source = f"-- Something later.\n{header}\nSELECT 1;\n"
        newest = "WHERE version = (SELECT max(version) FROM observatory.schema_migrations)"
        database.execute(f"UPDATE observatory.schema_migrations SET version = 9, source = %s {newest}", source)
        service = start(database, wait=False)
        service.wait_until_live()
        client = service.client()
        if status == 200:
            until(lambda: ready(client) == 200, "the service to be ready")
        else:
            until(lambda: "migration 9 is a contract migration" in client.get("/health").text, "the cause in /health")
            assert ready(client) == 503
        service.close()


def test_own_migration_does_not_stand_for_one_of_the_product(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    with storage_database(postgres, tmp_path) as database:
        database.execute("DELETE FROM observatory.schema_migrations WHERE version NOT IN (2, 3)")
        database.execute("UPDATE observatory.schema_migrations SET version = 500 WHERE version = 3")
        service = start(database, wait=False)
        service.wait_until_live()
        client = service.client()
        until(
            lambda: "schema version is 2, expected at least 3" in client.get("/health").text, "the version in /health"
        )
        service.close()


def test_interrupted_migration_does_not_count(postgres: PostgresServer, start: StartService, tmp_path: Path) -> None:
    with storage_database(postgres, tmp_path) as database:
        database.execute(
            "UPDATE observatory.schema_migrations SET statements_total = statements_total + 1 WHERE version = 3"
        )
        service = start(database, wait=False)
        service.wait_until_live()
        client = service.client()
        until(lambda: "schema version is 2" in client.get("/health").text, "the version in /health")
        service.close()


def test_service_is_not_ready_without_the_migration_table(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    with storage_database(postgres, tmp_path) as database:
        database.execute("DROP SCHEMA observatory CASCADE")
        service = start(database, wait=False)
        service.wait_until_live()
        client = service.client()
        until(lambda: "cannot read observatory.schema_migrations" in client.get("/health").text, "the cause in /health")
        assert ready(client) == 503
        service.close()


def test_lame_duck_is_not_ready_but_accepts_requests(database: StorageDatabase, start: StartService) -> None:
    service = start(database, LAME_DUCK_SECONDS="600")
    client = service.client()
    service.terminate()
    until(lambda: client.get("/health").json()["status"] == "draining", "the signal to be handled")
    assert ready(client) == 503
    assert client.get("/health/live").status_code == 200
    assert post(client, item()).status_code == 201


def test_drain_finishes_requests_in_flight_and_rejects_new_ones(database: StorageDatabase, start: StartService) -> None:
    service = start(database, DATABASE_TIMEOUT_SECONDS="600", DRAIN_SECONDS="600")  # until the lock is released
    sent, late = item(), item()
    connected = service.client()
    assert connected.get("/health/live").status_code == 200
    with database.locked_traces():
        background = Background(service.client(), sent)
        until(lambda: service.metric("storage_pending_writes") == 1, "the write to wait")
        service.terminate()
        service.terminate()
        until(lambda: ready(connected) == 503, "not ready")
        until(lambda: post(connected, late).status_code == 503, "new requests to be rejected")
        rejected = post(connected, late)
    assert rejected.headers["retry-after"] == "1"
    assert background.join().status_code == 201
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert (database.count(sent["trace_id"]), database.count(late["trace_id"])) == (1, 0)


def test_request_that_outlasts_the_drain_is_closed(database: StorageDatabase, start: StartService) -> None:
    service = start(database, DRAIN_SECONDS="0.1")
    with database.locked_traces():
        threading.Thread(target=_ignoring_errors, args=(service.client(),)).start()
        until(lambda: service.metric("storage_pending_writes") == 1, "the write to wait")
        service.terminate()
        assert service.process.wait(timeout=PATIENCE_S) == 0
    assert any("closing the requests" in line["message"] for line in service.log)


def _ignoring_errors(client: httpx.Client) -> None:
    try:
        post(client, item())
    except httpx.TransportError:
        return


class Load:
    """Writes from a few threads until the instance is not ready, as a balancer does."""

    def __init__(self, service: Service, *, threads: int = 4) -> None:
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._run, args=(service.client(),)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: httpx.Client) -> None:
        while ready(client) == 200:
            self.statuses.append(post(client, *(item() for _ in range(20))).status_code)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_shutdown_under_load_fails_no_request(database: StorageDatabase, start: StartService) -> None:
    service = start(database, LAME_DUCK_SECONDS="30")  # for each thread to notice, with a write in between
    load = Load(service)
    until(lambda: len(load.statuses) > 20, "some load")
    service.terminate()
    load.join()
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert set(load.statuses) == {201}


def test_close_ends_the_monitor_when_its_query_fails_on_cancellation(
    database: StorageDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver ends a cancelled query, and an error of the query replaces the CancelledError."""

    async def query_when_cancelled(_self: Database, _connection: object) -> Condition:
        querying.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise psycopg.OperationalError("the connection is lost") from None
        raise AssertionError

    async def open_and_close() -> None:
        connections = Database(Settings.from_environment(environment(database, 8000, {})))
        await connections.open()
        await querying.wait()
        await connections.close()

    querying = asyncio.Event()
    monkeypatch.setattr(Database, "_schema_condition", query_when_cancelled)
    asyncio.run(asyncio.wait_for(open_and_close(), PATIENCE_S))
