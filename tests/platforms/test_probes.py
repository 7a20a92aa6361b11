"""Probes of a bake: real services, good and bad, on one database."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from observatory.database.verification_rows import PROBE_MARK
from observatory.delivery.environment import ProbeResult
from observatory.platforms import probe_requests
from observatory.platforms.probes import FleetProbes
from tests.service.harness import (
    Service,
    StorageDatabase,
    faulty,
    item,
    post,
    running_service,
    storage_database,
)
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

PATIENCE_S = 120.0
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

        def start_version(fault: str) -> Service:
            service = stack.enter_context(running_service(database, tmp_path, {}, command=faulty(fault)))
            service.wait_until_ready()
            return service

        yield start_version


def probes(database: StorageDatabase, new: Service | int, old: Service | None) -> FleetProbes:
    """Return probes of `green`, whose one instance is `new`, a service or a port; `blue` is `old`, or does not run."""
    port = new if isinstance(new, int) else new.port
    return FleetProbes(
        preview_url=f"http://127.0.0.1:{old.port if old else free_port()}",
        database=lambda: database.server.conninfo(dbname=database.name),
        instance_url=lambda _fleet, _name: f"http://127.0.0.1:{port}",
    )


def probe_once(found: FleetProbes) -> ProbeResult:
    return found.probe("green", ["green-1"], version=RELEASE)


def probe(found: FleetProbes) -> ProbeResult:
    """Probe once; a busy machine may take longer than a probe has."""
    deadline = time.monotonic() + PATIENCE_S
    while (result := probe_once(found)).unknown:
        assert time.monotonic() < deadline, result
        time.sleep(1)
    return result


def wait_until_passed(found: FleetProbes) -> None:
    """Probe until nothing is wrong; until then, no more than a late answer, as a busy machine gives."""

    def has_passed() -> bool:
        result = probe(found)
        assert {failure.kind for failure in result.failures} <= {"unanswered"}, result
        return not result.failures

    until(has_passed, "a probe without a failure")


def accepts_writes(service: Service) -> bool:
    return post(service.client(), item()).status_code == 201


def left(database: StorageDatabase) -> int:
    """Return the number of rows and keys that probes left."""
    rows = database.execute("SELECT count(*) FROM llm_traces WHERE provider = %s", PROBE_MARK)
    keys = database.execute("SELECT count(*) FROM api_keys WHERE name = %s", PROBE_MARK)
    return int(rows[0][0]) + int(keys[0][0])


def test_a_good_version_passes_and_nothing_remains(database: StorageDatabase, old: Service, start: Start) -> None:
    found = probes(database, start("good"), old)
    results: list[ProbeResult] = []

    def is_whole() -> bool:  # a busy machine leaves out the last requests
        results.append(probe(found))
        return (results[-1].failures, results[-1].attempts) == ((), 18)

    until(is_whole, "a probe with every check")
    assert results[-1].requests > results[-1].attempts
    assert left(database) == 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("never-stored", "not stored"),
        ("missing-traces", "not returned"),
        ("empty-lists", "not returned"),
        ("half-refused", "refused"),
        ("stale-reads", "not returned"),
        ("any-key", "key accepted"),
    ],
)
def test_each_kind_of_bad_version_fails(
    database: StorageDatabase, old: Service, start: Start, fault: str, kind: str
) -> None:
    found = probes(database, start(fault), old)
    kinds: set[str] = set()

    def is_met() -> bool:  # a busy machine leaves out the last requests
        kinds.update(failure.kind for failure in probe(found).failures)
        return kind in kinds

    until(is_met, kind)
    assert left(database) == 0


@pytest.mark.parametrize(("fault", "kind"), [("losing-once", "not stored"), ("omitting-once", "not returned")])
def test_one_probe_meets_a_version_that_is_wrong_for_few_writes_or_reads(
    database: StorageDatabase, old: Service, start: Start, fault: str, kind: str
) -> None:
    found = probes(database, start(fault), old)
    kinds: set[str] = set()

    def is_met() -> bool:  # a busy machine leaves out the last requests
        kinds.update(failure.kind for failure in probe(found).failures if failure.certain)
        return bool(kinds)

    until(is_met, "a failure")
    assert kinds == {kind}


def unknown_of(found: FleetProbes, cause: str) -> ProbeResult:
    """Probe until the result is unknown for this cause; a busy machine may give another one before."""
    result = ProbeResult()

    def is_the_cause() -> bool:
        nonlocal result
        result = probe_once(found)
        assert result.unknown, result
        return cause in result.unknown

    until(is_the_cause, cause)
    return result


def test_a_version_that_hangs_is_not_answered_and_one_behind_an_ill_database_is_unknown(
    database: StorageDatabase, old: Service, start: Start
) -> None:
    new = start("good")
    found = probes(database, new, old)
    with database.locked_traces("ACCESS EXCLUSIVE"):
        assert probe_once(found).unknown
    with database.unavailable():
        unknown_of(found, "the database does not answer the probe")
    for service in (new, old):  # which may be ready before its pool has connections again
        until(partial(accepts_writes, service), "a write")
    wait_until_passed(found)
    os.kill(new.pid, signal.SIGSTOP)
    try:
        assert {failure.kind for failure in probe(found).failures} == {"unanswered"}
    finally:
        os.kill(new.pid, signal.SIGCONT)


@pytest.mark.parametrize("fault", ["half-refused"])
def test_what_fails_at_both_fleets_is_unknown(database: StorageDatabase, start: Start, fault: str) -> None:
    result = unknown_of(probes(database, start(fault), start(fault)), "but also blue")
    assert (result.attempts, result.failures) == (0, ())


def test_what_the_other_fleet_did_not_come_to_is_unknown(
    database: StorageDatabase, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first read takes longer than the time of all requests."""
    monkeypatch.setattr(probe_requests, "WORK_SECONDS", 0.3)
    found = probes(database, start("redirected"), start("slow-reads"))
    results: list[ProbeResult] = []

    def is_the_cause() -> bool:
        results.append(probe_once(found))
        return "blue did not end the same requests in time" in str(results[-1].unknown)

    until(is_the_cause, "a refused write that blue did not come to")
    assert not any(result.failures for result in results)


def test_without_another_fleet_only_what_the_database_proves_is_a_failure(
    database: StorageDatabase, start: Start
) -> None:
    wait_until_passed(probes(database, start("good"), None))
    unknown_of(probes(database, start("half-refused"), None), "blue does not run")
    failures = probe(probes(database, start("missing-traces"), None)).failures
    assert {each.kind for each in failures if each.certain} == {"not returned"}


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
    wait_until_passed(probes(database, start("good"), old))
    assert database.count("killed") == 0
    assert database.execute("SELECT FROM api_keys WHERE key_prefix = 'killed'") == []


@pytest.mark.parametrize(
    ("first", "then"),
    [(b"HTTP/1.1 201 Created\r\nContent-Length: 100000\r\n\r\n", b"."), (b"HTTP/1.1 201 Created\r\n", b"A: b\r\n")],
    ids=["body", "headers"],
)
def test_an_answer_that_trickles_without_an_end_is_not_answered(
    database: StorageDatabase, old: Service, first: bytes, then: bytes
) -> None:
    """Each part of the answer arrives in time, and the last one never."""
    with server(first, then=then) as port:
        result = probe(probes(database, port, old))
        assert {failure.kind for failure in result.failures} == {"unanswered"}


def test_a_probe_that_hangs_is_left() -> None:
    hanging = threading.Event()
    found = FleetProbes(preview_url="http://127.0.0.1:1", database=lambda: str(hanging.wait(600)))
    try:
        assert "did not end" in (found.probe("green", version=RELEASE).unknown or "")
        assert "has not answered the last probe" in (found.probe("green", version=RELEASE).unknown or "")
    finally:
        hanging.set()


@contextmanager
def server(first: bytes, *, then: bytes) -> Iterator[int]:
    """Answer every request with the beginning of a response and then, for ever, with the same bytes; yield the port."""
    stopped = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(first)
            while not stopped.wait(0.1):
                connection.sendall(then)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
