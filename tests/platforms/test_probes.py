"""Probes of a bake: real services, good and bad, on one database."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from observatory.database.verification_rows import PROBE_MARK
from observatory.delivery.environment import ProbeResult
from observatory.platforms.probes import FleetProbes
from tests.service.harness import Service, StorageDatabase, free_port, running_service, storage_database
from tests.support.postgres import PostgresServer

RELEASE = "v0.0.0-dev"  # what a service that runs from its sources says it is
Start = Callable[..., Service]


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageDatabase]:
    with storage_database(postgres, tmp_path_factory.mktemp("probed"), schema=4) as database:
        database.execute(f"GRANT SELECT ON cost_analysis_hourly TO {database.role}")
        yield database


@pytest.fixture(scope="module")
def old(database: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(database, tmp_path_factory.mktemp("old"), {}) as service:
        service.wait_until_ready()
        yield service


@pytest.fixture
def start(database: StorageDatabase, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_version() -> Service:
            service = stack.enter_context(running_service(database, tmp_path, {}))
            service.wait_until_ready()
            return service

        yield start_version


def probes(database: StorageDatabase, new: Service, old: Service | None) -> FleetProbes:
    """Return probes of `green`, whose one instance is `new`; `blue` is `old`, or does not run."""
    return FleetProbes(
        preview_url=f"http://127.0.0.1:{old.port if old else free_port()}",
        database=lambda: database.server.conninfo(dbname=database.name),
        instance_url=lambda _fleet, _name: f"http://127.0.0.1:{new.port}",
    )


def probe_once(found: FleetProbes) -> ProbeResult:
    return found.probe("green", ["green-1"], version=RELEASE)


def probe(found: FleetProbes) -> ProbeResult:
    """Probe once; a busy machine may take longer than a probe has."""
    for _ in range(20):
        result = probe_once(found)
        if result.unknown is None:
            return result
        time.sleep(0.2)
    raise AssertionError(result)


def left(database: StorageDatabase) -> int:
    """Return the number of rows and keys that probes left."""
    rows = database.execute("SELECT count(*) FROM llm_traces WHERE provider = %s", PROBE_MARK)
    keys = database.execute("SELECT count(*) FROM api_keys WHERE name = %s", PROBE_MARK)
    return int(rows[0][0]) + int(keys[0][0])


def test_a_good_version_passes_and_nothing_remains(database: StorageDatabase, old: Service, start: Start) -> None:
    found = probes(database, start(), old)
    result = probe(found)
    assert (result.failures, result.attempts) == ((), 10)
    assert left(database) == 0


def test_a_version_that_hangs_is_not_answered_and_one_behind_an_ill_database_is_unknown(
    database: StorageDatabase, old: Service, start: Start
) -> None:
    new = start()
    found = probes(database, new, old)
    with database.locked_traces("ACCESS EXCLUSIVE"):
        assert probe_once(found).unknown
    with database.unavailable():
        assert "the database does not answer the probe" in (probe_once(found).unknown or "")
    new.wait_until_ready()
    assert probe(found).failures == ()
    os.kill(new.pid, signal.SIGSTOP)
    try:
        assert {failure.kind for failure in probe(found).failures} == {"unanswered"}
    finally:
        os.kill(new.pid, signal.SIGCONT)


def test_a_good_version_passes_without_another_fleet(database: StorageDatabase, start: Start) -> None:
    assert probe(probes(database, start(), None)).failures == ()


def test_the_next_probe_removes_what_a_killed_one_left(database: StorageDatabase, old: Service, start: Start) -> None:
    columns = "ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code"
    database.execute(
        f"INSERT INTO llm_traces ({columns}) VALUES (now() - interval '2m', 'killed', '1', 's', %s, %s, '', 1, 'OK')",
        *(PROBE_MARK, PROBE_MARK),
    )
    database.execute(
        "INSERT INTO api_keys (key_hash, key_prefix, name, expires_at) VALUES (%s, 'killed', %s, now())",
        *("0" * 64, PROBE_MARK),
    )
    assert probe(probes(database, start(), old)).failures == ()
    assert database.count("killed") == 0
    assert database.execute("SELECT FROM api_keys WHERE key_prefix = 'killed'") == []


def test_a_probe_that_hangs_is_left_behind(database: StorageDatabase, old: Service) -> None:
    """The database of the connection string accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = FleetProbes(
            preview_url=f"http://127.0.0.1:{old.port}",
            database=lambda: f"host=127.0.0.1 port={silent.getsockname()[1]} user=nobody dbname=none",
        )
        assert probe_once(found).unknown
        assert "has not answered the last probe" in (probe_once(found).unknown or "")
