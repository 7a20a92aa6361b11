"""Writes share transactions; each responds after its commit, and none fails because of another."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from service.storage_service import buffer as buffer_module
from service.storage_service.buffer import MAX_SHARED_ITEMS, MAX_TRANSACTIONS, WriteBuffer
from service.storage_service.database import Database
from service.storage_service.metrics import Metrics
from service.storage_service.settings import Settings
from service.storage_service.traces import TRACES
from tests.service.conftest import StartService
from tests.service.harness import (
    Background,
    Service,
    StorageDatabase,
    environment,
    item,
    post,
    running_service,
    storage_database,
)
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE_S, until

SIZE = 'storage_buffer_size{table="llm_traces"}'


@pytest.fixture(scope="module")
def idle(database: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(database, tmp_path_factory.mktemp("buffer"), {}) as service:
        service.wait_until_ready()
        yield service


def flushes(service: Service, status: str = "success") -> float:
    return service.metric(f'storage_flushes_total{{status="{status}"}}')


def has_blocked(database: StorageDatabase, number: int) -> bool:
    return database.blocked() == number


@contextmanager
def occupied(service: Service, database: StorageDatabase) -> Iterator[list[Background]]:
    """Block every transaction of the table by a lock; waits for the writes of the list after releasing it."""
    writes: list[Background] = []
    with database.locked_traces():
        for number in range(1, MAX_TRANSACTIONS + 1):
            writes.append(Background(service.client(), item()))
            until(partial(has_blocked, database, number), f"{number} transactions to wait")
        yield writes
    for write in writes:
        write.join()


def joined(service: Service, *batches: list[dict[str, object]]) -> list[Background]:
    """Send batches that wait in the buffer together."""
    size = service.metric(SIZE) + sum(map(len, batches))
    writes = [Background(service.client(), *batch) for batch in batches]
    until(lambda: service.metric(SIZE) == size, "the writes to wait")
    return writes


def test_waiting_writes_share_one_transaction(idle: Service, database: StorageDatabase) -> None:
    before = flushes(idle)
    sent = [[item(), item()] for _ in range(6)]
    with occupied(idle, database) as writes:
        waiting = joined(idle, *sent)
        writes.extend(waiting)
    assert [write.join().json() for write in waiting] == [{"accepted": 2}] * 6
    assert flushes(idle) - before == MAX_TRANSACTIONS + 1
    assert all(database.count(str(one["trace_id"])) == 1 for batch in sent for one in batch)
    assert idle.metric(SIZE) == 0


def test_shared_transaction_is_no_larger_than_the_largest_request(idle: Service, database: StorageDatabase) -> None:
    before = flushes(idle)
    with occupied(idle, database) as writes:
        writes.extend(joined(idle, *([item() for _ in range(400)] for _ in range(3))))
    assert {write.join().status_code for write in writes} == {201}
    assert flushes(idle) - before == MAX_TRANSACTIONS + 2


def test_span_in_two_writes_is_stored_once_and_both_writes_succeed(idle: Service, database: StorageDatabase) -> None:
    one = item()
    with occupied(idle, database) as writes:
        writes.extend(joined(idle, [one], [one, item()]))
    assert {write.join().status_code for write in writes} == {201}
    assert database.count(one["trace_id"]) == 1


def test_rejected_values_fail_only_their_own_write(idle: Service, database: StorageDatabase) -> None:
    good, bad = item(), item(model="llama")
    database.execute("ALTER TABLE llm_traces ADD CONSTRAINT no_llamas CHECK (model <> 'llama') NOT VALID")
    try:
        with occupied(idle, database) as writes:
            waiting = joined(idle, [good], [bad, item()], [item()])
            writes.extend(waiting)
    finally:
        database.execute("ALTER TABLE llm_traces DROP CONSTRAINT no_llamas")
    assert [write.join().status_code for write in waiting] == [201, 400, 201]
    assert (database.count(good["trace_id"]), database.count(bad["trace_id"])) == (1, 0)


def test_other_writes_succeed_when_the_database_rejects_one(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    """A repeated span needs a privilege on the key's columns, which this role does not have."""
    with storage_database(postgres, tmp_path) as database:
        service = start(database)
        repeated, good = item(), item()
        assert post(service.client(), repeated).status_code == 201
        database.execute(f"REVOKE SELECT ON llm_traces FROM {database.role}")
        with occupied(service, database) as writes:
            waiting = joined(service, [good], [repeated])
            writes.extend(waiting)
        assert [write.join().status_code for write in waiting] == [201, 503]
        assert database.count(good["trace_id"]) == 1
        service.close()


def test_lost_connection_fails_every_write_of_the_transaction(idle: Service, database: StorageDatabase) -> None:
    with occupied(idle, database) as writes:
        writes.extend(joined(idle, [item()], [item()]))

        def lost() -> bool:
            database.disconnect()
            return all(write.done for write in writes)

        until(lost, "the writes to fail")
    assert [(write.join().status_code, write.join().headers["retry-after"]) for write in writes] == [(503, "1")] * 4
    assert post(idle.client(), item()).status_code == 201


def test_pool_metrics_show_use_and_capacity(database: StorageDatabase, start: StartService) -> None:
    service = start(database, POOL_MAX="3")
    until(lambda: service.metric("storage_pool_in_use") == 0, "the first connection, which counts while it is made")
    assert service.metric("storage_pool_capacity") == 3
    with database.locked_traces():
        background = Background(service.client(), item())
        until(lambda: service.metric("storage_pool_in_use") == 1, "the write to hold a connection")
    assert background.join().status_code == 201
    until(lambda: service.metric("storage_pool_in_use") == 0, "the connection to be free")


def test_write_to_a_full_buffer_gets_503_with_retry_after(database: StorageDatabase, start: StartService) -> None:
    service = start(database, BUFFER_ITEMS="1000")
    assert service.metric("storage_buffer_capacity") == 1000
    with database.locked_traces():
        background = Background(service.client(), *(item() for _ in range(999)))
        until(lambda: service.metric(SIZE) == 999, "the buffer to fill")
        answer = post(service.client(), item(), item())
        last = Background(service.client(), item())
        until(lambda: service.metric(SIZE) == 1000, "the last item to fit in")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "999 items wait" in answer.json()["detail"]
    assert {background.join().status_code, last.join().status_code} == {201}


def test_write_that_waits_too_long_fails(database: StorageDatabase, start: StartService) -> None:
    """Each of these writes fills a transaction, so one has to wait until the two before it have failed."""
    service = start(database, DATABASE_TIMEOUT_SECONDS="10")
    sent = [[item() for _ in range(MAX_SHARED_ITEMS)] for _ in range(MAX_TRANSACTIONS + 1)]
    with database.locked_traces():
        writes = [Background(service.client(), *batch) for batch in sent]
        assert [write.join().status_code for write in writes] == [503] * len(sent)
    assert [database.count(batch[0]["trace_id"]) for batch in sent] == [0] * len(sent)
    until(lambda: post(service.client(), *sent[-1]).status_code == 201, "the database to respond in time")


class InstantDatabase:
    """Returns connections at once, so that transactions end in the same iteration of the event loop."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        yield


def test_write_right_after_the_last_transaction_is_stored(
    database: StorageDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def store(*_arguments: Any, **_named: Any) -> int:
        """Store nothing and return at once."""
        return 0

    monkeypatch.setattr(buffer_module, "store", store)
    settings = Settings.from_environment(environment(database, 8000, {}))

    async def write_often() -> None:
        instant = cast("Database", InstantDatabase())
        buffer = WriteBuffer(settings, table=TRACES, database=instant, metrics=Metrics(fleet="blue"))

        async def write() -> None:
            for _ in range(3):
                await buffer.write([], key="a")

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(write() for _ in range(MAX_TRANSACTIONS)))

    asyncio.run(write_often())
