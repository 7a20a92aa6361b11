"""The smoke suite and the further tests of a trial: real services, good and bad, on one database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from observatory.database import verification_session
from observatory.database.verification_rows import MARK, MarkedRows, marked_rows
from observatory.database.verification_session import verification_rows
from observatory.delivery.environment import HostsError, UnjudgedError
from observatory.platforms import content_checks, live_comparison, smoke, trial_checks
from observatory.platforms import place as module_of_places
from observatory.platforms.content_checks import SINCE_SCHEMA, check_content
from observatory.platforms.instance_process import FILES, MEMORY, usage
from observatory.platforms.live_comparison import judged
from observatory.platforms.marked_items import compared
from observatory.platforms.place import Place
from observatory.platforms.smoke import Run, exercise
from observatory.platforms.trial_checks import (
    LEAST_COUNTED,
    check_growth,
    check_log,
    check_metrics,
    end_with_request_in_flight,
    send_burst,
)
from tests.service.harness import REPOSITORY, Service, StorageDatabase, faulty, running_service, storage_database
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

RELEASE = "v0.0.0-dev"  # what a service that runs from its sources says it is
END_S = 60
LATE = {"LAME_DUCK_SECONDS": "8"}  # a request that a busy machine sends or reads late is still one in flight
EVERY_THIRD = """
CREATE SEQUENCE public.refused MINVALUE 0;
CREATE FUNCTION public.refuse_sometimes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN IF nextval('public.refused') % 3 = 0 THEN RAISE EXCEPTION 'ill'; END IF; RETURN NULL; END $$;
CREATE TRIGGER refuse_sometimes BEFORE INSERT ON public.TABLE FOR EACH STATEMENT
    EXECUTE FUNCTION public.refuse_sometimes();
"""
HEALED = "DROP FUNCTION public.refuse_sometimes() CASCADE; DROP SEQUENCE public.refused"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that runs answers, however busy the machine is."""
    for module in (smoke, trial_checks, content_checks):
        monkeypatch.setattr(module, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(module_of_places, "READY_SECONDS", 60.0)
    monkeypatch.setattr(trial_checks, "BURST_SECONDS", 120.0)
    monkeypatch.setattr(live_comparison, "REPEATED_SECONDS", 60.0)


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageDatabase]:
    with storage_database(postgres, tmp_path_factory.mktemp("smoke"), schema=4) as database:
        database.execute(f"GRANT SELECT ON cost_analysis_hourly TO {database.role}")
        yield database


@pytest.fixture(scope="module")
def good(database: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A good service that no test ends."""
    with running_service(database, tmp_path_factory.mktemp("good"), {}, command=faulty("good")) as service:
        service.wait_until_ready()
        yield service


@dataclass
class Stage:
    """A database and services on it; `good` is one that no test ends."""

    database: StorageDatabase
    directory: Path
    stack: ExitStack
    good: Service

    def start(self, fault: str, **settings: str) -> Service:
        running = running_service(self.database, self.directory, settings, command=faulty(fault))
        service = self.stack.enter_context(running)
        service.wait_until_ready()
        return service

    @contextmanager
    def rows(self) -> Iterator[MarkedRows]:
        with closing(self.database.server.superuser(self.database.name)) as owner, marked_rows(owner) as rows:
            yield rows

    @contextmanager
    def run(self) -> Iterator[Run]:
        with self.rows() as rows:
            yield Run.with_database(rows)

    @contextmanager
    def failing_every_third(self, table: str) -> Iterator[None]:
        """Let the database refuse the next write to a table, and every third one after it."""
        self.database.execute(EVERY_THIRD.replace("TABLE", table))
        try:
            yield
        finally:
            self.database.execute(HEALED)

    def exercise(self, service: Service, *, version: str = RELEASE, beside: Service | None = None) -> tuple[str, ...]:
        with self.run() as run:
            other = place(beside, "blue") if beside else None
            return exercise(place(service), run, version=version, beside=other)

    def left(self) -> list[tuple[object, ...]]:
        """Return what remains in the database of the suite."""
        return [
            *self.database.execute("SELECT trace_id, span_id FROM llm_traces WHERE provider = %s", MARK),
            *self.database.execute("SELECT user_id FROM llm_metrics WHERE provider = %s", MARK),
            *self.database.execute("SELECT message FROM llm_logs WHERE provider = %s", MARK),
            *self.database.execute("SELECT key_prefix FROM api_keys WHERE name = %s", MARK),
        ]


@pytest.fixture
def stage(database: StorageDatabase, good: Service, tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(database, tmp_path, stack, good)


def place(service: Service, name: str = "green") -> Place:
    return Place(name=name, url=f"http://127.0.0.1:{service.port}")


def test_a_difference_says_what_was_sent_and_what_was_found() -> None:
    assert compared({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0", "d": "4"}) == (
        "3 of 3 spans: 1 as they were sent, 1 with another text, 1 that were not sent, 1 missing"
    )


def test_a_good_version_passes_and_nothing_remains(stage: Stage) -> None:
    assert stage.exercise(stage.start("good"), beside=stage.good) == ()
    assert stage.exercise(stage.good) == ("not checked: reads through the other fleet: it does not run",)
    assert stage.left() == []


def test_without_a_database_what_is_not_checked_is_named(stage: Stage) -> None:
    skipped = exercise(place(stage.good), Run(id="without", key=stage.database.key), version=RELEASE)
    assert any("there is no database" in each for each in skipped)
    for table in ("llm_traces", "llm_metrics", "llm_logs"):
        stage.database.execute(f"DELETE FROM {table} WHERE provider = %s", MARK)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "never-stored",
            "10 spans of a trace were sent to POST /v1/traces, which answered 201, .* 0 of 10 spans: 10 missing",
        ),
        ("in-memory", "the database has 0 of 10 spans: 10 missing"),
        ("duplicating", "the database has 20 of 10 spans: 10 as they were sent, 10 that were not sent"),
        ("missing-traces", "20 of 20 reads of a stored trace with a valid key: answered 404"),
        ("empty-lists", "listed 0 of 10 newest spans"),
        ("half-refused", "answered 401"),
        ("any-key", r"GET /v1/traces/\S+ with a random key answered 200, expected 401"),
        ("writing-with-any-scope", "with a key that may only read answered 201, expected 403"),
        ("wrong-costs", "GET /v1/costs answered"),
        ("wrong-stored-costs", "the database has costs of 3e-07 USD"),
        ("repeated-rows", "10 of 20 reads .*: answered 200 with 10 spans more than once"),
        ("plain-text", "POST /v1/traces answered with the content type text/plain, expected application/json"),
    ],
)
def test_each_kind_of_bad_version_fails_by_its_name(stage: Stage, fault: str, message: str) -> None:
    with pytest.raises(HostsError, match=message):
        stage.exercise(stage.start(fault))
    assert stage.left() == []


def test_the_other_fleet_must_return_what_was_written_unless_it_is_ill_itself(stage: Stage) -> None:
    skipped = stage.exercise(stage.good, beside=stage.start("missing-traces"))
    assert skipped == ("not checked: reads through blue: it does not return its own traces",)
    assert stage.left() == []


def test_a_database_that_refuses_writes_of_both_fleets_is_not_blamed_on_the_version(stage: Stage) -> None:
    live = stage.start("good")

    def attempt() -> None:
        stage.exercise(stage.good)

    with (
        stage.failing_every_third("llm_logs"),
        pytest.raises(UnjudgedError, match="both fleets are ill: blue, which is live, failed the same check") as caught,
    ):
        judged(attempt, place(live, "blue"), stage.rows)
    assert "Repair what both need, such as the database" in str(caught.value)
    judged(attempt, place(live, "blue"), stage.rows)
    assert stage.left() == []


def test_a_version_that_locks_a_table_for_ever_is_blamed_at_once(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification_session, "TIMEOUTS", {"lock_timeout": "100ms", "statement_timeout": "60s"})
    monkeypatch.setattr(smoke, "ANSWER_SECONDS", 10.0)  # in which the version gets its lock on a busy machine, too
    database, live, tested = stage.database, place(stage.good, "blue"), f"green {RELEASE}"

    def rows() -> AbstractContextManager[MarkedRows]:
        return verification_rows(database.server.conninfo(dbname=database.name))

    with running_service(database, tmp_path, {"FLEET": "green"}, command=faulty("locking-traces")) as locking:
        locking.wait_until_ready()

        def attempt() -> None:
            with rows() as found:
                exercise(place(locking), Run.with_database(found), version=RELEASE)

        with pytest.raises(HostsError, match=r"of the version itself .* LOCK TABLE llm_traces") as caught:
            judged(attempt, live, rows, tested=tested)
        locking.process.kill()
    assert not isinstance(caught.value, UnjudgedError)
    sessions = "SELECT FROM pg_stat_activity WHERE application_name LIKE %s"
    until(lambda: not database.execute(sessions, f"% {tested}"), "the sessions of the version to end")
    for statement in ("DELETE FROM api_keys WHERE name = %s", "DELETE FROM llm_traces WHERE provider = %s"):
        database.execute(statement, MARK)  # the lock has kept them
    monkeypatch.undo()
    judged(lambda: stage.exercise(stage.good), live, rows, tested=tested)
    assert stage.left() == []


def test_a_version_that_fails_beside_a_healthy_one_is_blamed_after_a_second_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_comparison, "REPETITIONS", 2)
    bad, live, attempts = stage.start("broken"), stage.good, 0

    def attempt() -> None:
        nonlocal attempts
        attempts += 1
        stage.exercise(bad)

    with pytest.raises(HostsError, match=r"green: POST /v1/\w+ answered 500") as caught:
        judged(attempt, place(live, "blue"), stage.rows)
    assert not isinstance(caught.value, UnjudgedError)
    assert attempts == 2


def test_a_version_is_not_judged_beside_a_live_one_that_is_not_ready_but_its_own_faults_are(stage: Stage) -> None:
    bad, lying, gone = stage.start("broken"), stage.start("never-stored"), Place(name="blue", url="http://127.0.0.1:1")
    with pytest.raises(UnjudgedError, match="blue, which is live, is not ready"):
        judged(lambda: stage.exercise(bad), gone, stage.rows)
    with pytest.raises(HostsError, match="the database has 0 of 10 spans") as caught:
        judged(lambda: stage.exercise(lying), gone, stage.rows)
    assert not isinstance(caught.value, UnjudgedError)


def test_a_version_that_lacks_a_metric_that_its_manifest_promises_fails_with_its_name(stage: Stage) -> None:
    promised = json.loads((REPOSITORY / "service/storage_service/release.json").read_text())["metrics"]
    check_metrics(place(stage.good), promised)
    mute = place(stage.start("without-saturation"))
    check_metrics(mute, ())
    with pytest.raises(
        HostsError,
        match=r"/metrics has no sample of storage_buffer_capacity, storage_buffer_size.*, which its manifest",
    ):
        check_metrics(mute, promised)
    with pytest.raises(HostsError, match="GET /metrics got no answer"):
        check_metrics(Place(name="gone", url="http://127.0.0.1:1"), ())


def test_keys_and_rows_of_a_killed_run_are_removed_by_the_next(stage: Stage) -> None:
    stage.database.execute(
        "INSERT INTO api_keys (key_hash, key_prefix, name, expires_at) VALUES (%s, 'obs_', %s, now())", "1" * 64, MARK
    )
    stage.exercise(stage.good)
    assert stage.left() == []


def further(stage: Stage, service: Service, log: Callable[[], bytes] = bytes) -> None:
    """Test an instance as a trial does, and end it; a busy machine has more time for the requests."""

    def ended() -> int | None:
        try:
            return service.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return None

    with stage.run() as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_checks, "ROUND_SECONDS", 60.0)  # with too few requests, growth is not checked
        exercise(place(service), run, version=RELEASE)
        check_content(place(service), run, version=RELEASE, schema_max=SINCE_SCHEMA)
        send_burst(place(service), run)
        check_growth(place(service), run, lambda: usage(psutil.Process(service.pid)))
        end_with_request_in_flight(place(service), run, lambda: os.kill(service.pid, signal.SIGTERM), ended)
        check_log(place(service), run, log())


def test_what_grows_in_every_round_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_checks, "_send", lambda _requests, number: number)
    held, anywhere, run = (
        {MEMORY: 50.0, FILES: 20.0},
        Place(name="green", url="http://127.0.0.1:1"),
        Run(id="r", key="k"),
    )

    def growing(memory: float, files: float) -> Callable[[], dict[str, float]]:
        def usage_now() -> dict[str, float]:
            held[MEMORY] += memory
            held[FILES] += files
            return dict(held)

        return usage_now

    assert check_growth(anywhere, run, growing(10, 24)) == ()
    with pytest.raises(HostsError, match=r"it leaks: 3 times .* took 250 open files and connections, 50 are allowed$"):
        check_growth(anywhere, run, growing(1, 125))
    with pytest.raises(HostsError, match=r"took 64 MiB of memory, 20 are allowed$"):
        check_growth(anywhere, run, growing(32, 1))
    monkeypatch.setattr(trial_checks, "_send", lambda _requests, number: min(number, LEAST_COUNTED - 1))
    assert check_growth(anywhere, run, growing(64, 250)) == ("not checked: growth: only 199 requests in 10 s",)


def test_a_version_that_ignores_sigterm_fails_by_its_name(stage: Stage) -> None:
    service = stage.start("ignoring-the-end")

    def ended() -> None:
        with pytest.raises(subprocess.TimeoutExpired):
            service.process.wait(2)

    with stage.run() as run, pytest.raises(HostsError, match=r"green ignores SIGTERM, .*: it was killed") as caught:
        end_with_request_in_flight(place(service), run, lambda: os.kill(service.pid, signal.SIGTERM), ended)
    assert not isinstance(caught.value, live_comparison.UnansweredError)
    service.process.kill()
    assert stage.left() == []


def test_a_good_version_survives_a_trial(stage: Stage) -> None:
    service = stage.start("good", **LATE)
    further(stage, service, service.log_file.read_bytes)
    assert stage.left() == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crashing-together", "50 requests at once: .* no answer"),
        ("leaking-memory", r"it leaks: 3 times .* took \d\d MiB of memory, 20 are allowed"),
        ("leaking-descriptors", r"it leaks: 3 times .* took 2\d\d open files and connections, 50 are allowed"),
        ("logging-secrets", "logs secrets: the key of the tests is in its log"),
        ("large-batches", "a write of 1000 spans was answered 201, and the database has 100 of 1000 spans"),
        ("stale-reads", "last sent with total_cost_usd=3e-08 .* returns 0"),
        ("first-values", "last sent with total_cost_usd=3e-08 .* returns 0"),
        ("rounded-costs", "last sent with total_cost_usd=3e-08 .* returns 0"),
    ],
)
def test_each_further_kind_fails_by_its_name(
    stage: Stage, fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "leaking" not in fault:  # no growth to be seen
        monkeypatch.setattr(trial_checks, "WARM_UP", 20)
        monkeypatch.setattr(trial_checks, "COUNTED", 20)
    service = stage.start(fault, **LATE)
    with pytest.raises(HostsError, match=message):
        further(stage, service, service.log_file.read_bytes)
    assert stage.left() == []
