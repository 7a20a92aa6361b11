"""The difference between an earlier state and the live database, and the restore of what is missing."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from observatory.backups.flashback.difference import Request
from observatory.backups.flashback.errors import (
    ConditionError,
    FlashbackError,
    NotRestoredError,
    TableRefusedError,
)
from observatory.backups.flashback.flashback import check_request
from observatory.database.advisory_locks import FLASHBACK_LOCK, MIGRATION_LOCK, AdvisoryLock, session_lock
from observatory.database.errors import LockHeldError, StatementFailedError
from observatory.errors import WRONG_USAGE
from tests.backups.flashback.conftest import States
from tests.support.sample_pair import select

NOON = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(hours=12)


def traces(days: int = 3, number: int = 20) -> str:
    return f"""
        INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code,
                                total_cost_usd, tags, attributes, total_tokens)
        SELECT timestamptz '{NOON.isoformat()}' - make_interval(days => d, secs => n), 'trace ' || n, 's',
               E'a\\tb\\\\"',
               'openai', 'gpt', 'text', n, 'OK', 0.5, ARRAY['x', NULL], '{{"b": 1, "a": [null]}}', n
        FROM generate_series(0, {days - 1}) d, generate_series(1, {number}) n
    """


def logs(number: int = 20) -> str:
    """Log lines, of which each second one is twice the same."""
    return f"""
        INSERT INTO llm_logs (ts, log_level, message, attributes)
        SELECT timestamptz '{NOON.isoformat()}' - make_interval(hours => n / 2), 'INFO', 'line ' || n / 2, '{{"n": 1}}'
        FROM generate_series(2, {number + 1}) n
    """


def test_equal_tables_have_no_difference(states: States) -> None:
    states.both(traces())
    found = states.compare("llm_traces", restore=True)
    assert (found.missing, found.changed, found.added) == (0, 0, 0)
    assert found.restored is not None
    assert found.restored.inserted == 0


def test_missing_changed_and_added_rows_are_distinguished(states: States) -> None:
    states.both(traces())
    states.now("""
        DELETE FROM llm_traces WHERE trace_id = 'trace 1';
        UPDATE llm_traces SET duration_ms = 9999 WHERE trace_id = 'trace 2' AND ts = (SELECT max(ts) FROM llm_traces
                                                                                     WHERE trace_id = 'trace 2');
        UPDATE llm_traces SET span_id = 'other' WHERE trace_id = 'trace 3';
    """)
    found = states.compare("llm_traces")
    assert (found.missing, found.changed, found.added) == (6, 1, 3)
    assert found.key == ("trace_id", "span_id", "ts")
    assert {key[0] for key in found.examples["missing"]} == {"trace 1", "trace 3"}
    assert [key[0] for key in found.examples["changed"]] == ["trace 2"]
    assert found.restored is None
    assert len(states.rows("llm_traces")) == 60 - 3


def test_missing_rows_are_restored_as_they_were_and_later_writes_are_kept(states: States) -> None:
    states.both(traces())
    deleted = states.rows("llm_traces", live=False)
    states.now("""
        UPDATE llm_traces SET duration_ms = 9999 WHERE trace_id = 'trace 2';
        DELETE FROM llm_traces WHERE trace_id IN ('trace 1', 'trace 4');
        INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code)
            VALUES (now(), 'new', 's', 'n', 'p', 'm', 'text', 1, 'OK');
    """)
    kept = set(states.rows("llm_traces"))
    found = states.compare("llm_traces", restore=True)
    after = set(states.rows("llm_traces"))
    assert found.restored is not None
    assert (found.missing, found.restored.inserted, found.restored.kept) == (6, 6, 0)
    assert kept < after
    assert after - kept == {
        row for row in deleted if "trace 1," in row or "trace 4," in row or '"trace 1"' in row or '"trace 4"' in row
    }
    assert states.compare("llm_traces", restore=True).missing == 0


def test_a_truncated_table_is_restored_whole(states: States) -> None:
    states.both(traces(days=4, number=700))
    states.now("TRUNCATE llm_traces")
    assert states.compare("llm_traces", restore=True).missing == 2800
    assert states.rows("llm_traces") == states.rows("llm_traces", live=False)


def test_rows_without_a_key_are_compared_as_a_multiset(states: States) -> None:
    states.both(logs())
    states.now("""
        DELETE FROM llm_logs WHERE ctid IN (SELECT min(ctid) FROM llm_logs WHERE message IN ('line 1', 'line 3')
                                            GROUP BY tableoid, message);
        DELETE FROM llm_logs WHERE message = 'line 5';
        INSERT INTO llm_logs (ts, log_level, message) VALUES (now(), 'INFO', 'new');
    """)
    kept = states.rows("llm_logs")
    found = states.compare("llm_logs", restore=True)
    assert (found.missing, found.changed, found.added) == (4, 0, 1)
    assert sorted(states.rows("llm_logs")) == sorted(
        states.rows("llm_logs", live=False) + [row for row in kept if "new" in row]
    )
    assert states.compare("llm_logs", restore=True).missing == 0


def test_a_row_without_a_key_that_was_changed_is_not_restored_beside_its_change(states: States) -> None:
    states.both(logs())
    states.now(
        "UPDATE llm_logs SET message = 'masked' WHERE message = 'line 1'; DELETE FROM llm_logs WHERE message = 'line 2'"
    )
    found = states.compare("llm_logs", restore=True)
    assert (found.missing, found.changed, found.added) == (2, 2, 0)
    assert len(states.rows("llm_logs")) == 20


def test_random_deletes_are_restored_to_equal_checksums(states: States) -> None:
    states.both(traces(number=60) + ";" + logs(80))
    chosen = random.Random(16)  # noqa: S311 - repeatable
    for table in ("llm_traces", "llm_logs"):
        ids = [row[0] for row in select(states.live, f"SELECT tableoid || ' ' || ctid FROM {table}")]
        lost = chosen.sample(ids, 30)
        states.now(f"DELETE FROM {table} WHERE tableoid || ' ' || ctid IN ({', '.join(map(repr, lost))})")
        assert states.compare(table, restore=True).missing == 30
        assert states.rows(table) == states.rows(table, live=False)


def test_a_condition_chooses_rows_of_either_state(states: States) -> None:
    states.both(traces())
    states.now(
        "DELETE FROM llm_traces WHERE trace_id IN ('trace 1', 'trace 2'); "
        "UPDATE llm_traces SET model = 'other' WHERE trace_id = 'trace 3'"
    )
    found = states.compare("llm_traces", "trace_id = 'trace 1' AND model = 'gpt' -- a comment", restore=True)
    assert (found.missing, found.changed, found.added) == (3, 0, 0)
    assert states.compare("llm_traces", "trace_id <> 'trace 2'").missing == 0


def test_a_row_that_no_longer_fulfils_the_condition_is_changed_and_not_missing(states: States) -> None:
    states.both(traces())
    states.now("UPDATE llm_traces SET model = 'other' WHERE trace_id = 'trace 3'")
    for where in ("model = 'gpt'", "model = 'other'"):
        found = states.compare("llm_traces", where, restore=True)
        assert (found.missing, found.changed, found.added) == (0, 3, 0)


def test_a_row_without_a_key_that_no_longer_fulfils_the_condition_is_not_restored_beside_its_change(
    states: States,
) -> None:
    states.both(logs())
    states.now(
        "UPDATE llm_logs SET message = 'masked' WHERE message = 'line 1'; DELETE FROM llm_logs WHERE message = 'line 2'"
    )
    found = states.compare("llm_logs", "message LIKE 'line%'", restore=True)
    assert (found.missing, found.changed, found.added) == (2, 2, 0)
    assert len(states.rows("llm_logs")) == 20
    assert states.compare("llm_logs", "message LIKE 'line%'", restore=True).missing == 0


@pytest.mark.parametrize(
    "where",
    ["random() < 0.5", "pg_catalog.set_config('transaction_read_only', 'off', false) = ''", "pg_sleep(1) IS NULL"],
)
def test_a_condition_has_no_function_that_may_change_something(states: States, where: str) -> None:
    with pytest.raises(ConditionError, match="may change something"):
        states.compare("llm_traces", where, restore=True)


def test_what_postgresql_refuses_in_a_condition_is_a_clear_error(states: States) -> None:
    states.both(traces(1, 2))
    with pytest.raises(StatementFailedError, match="comparison of llm_traces"):
        states.compare("llm_traces", "1 / (duration_ms - duration_ms) = 1")


@pytest.mark.parametrize("where", ["nothing = 1", "total_tokens", "count(*) > 1", "user_id = 1", "ts = 'never'"])
def test_a_condition_that_does_not_fit_the_table_is_refused_before_a_restore(states: States, where: str) -> None:
    with pytest.raises(ConditionError, match="does not fit the table llm_traces: ") as refused:
        check_request(states.live, Request(table="llm_traces", where=where, restore=True))
    assert refused.value.exit_code == WRONG_USAGE


def test_a_condition_on_a_new_column_does_not_fit_the_earlier_table(states: States) -> None:
    states.both("CREATE SCHEMA own; CREATE TABLE own.t (id int PRIMARY KEY)")
    states.now("ALTER TABLE own.t ADD COLUMN late int")
    with pytest.raises(ConditionError, match=r"does not fit the table own\.t as of"):
        states.compare("own.t", "late = 1")


@pytest.mark.parametrize(
    ("table", "message"), [("nothing", "has no table nothing"), ("pg_catalog.pg_class", "belongs to the stack")]
)
def test_a_table_that_cannot_be_compared_is_refused_before_a_restore(states: States, table: str, message: str) -> None:
    with pytest.raises(TableRefusedError, match=message):
        check_request(states.live, Request(table=table, restore=False))


@pytest.mark.parametrize(
    ("name", "meant"), [("Orders", 'own."Orders"'), ("own.orders", 'own."Orders"'), ("t", "own.t")]
)
def test_a_name_in_other_letters_or_without_its_schema_is_answered_with_the_right_one(
    states: States, name: str, meant: str
) -> None:
    states.both('CREATE SCHEMA own; CREATE TABLE own."Orders" (id int PRIMARY KEY); CREATE TABLE own.t (id int)')
    with pytest.raises(TableRefusedError, match=f"has no table {name}, but {meant}") as refused:
        check_request(states.live, Request(table=name))
    assert f"--table '{meant}'" in refused.value.remedy
    check_request(states.live, Request(table=meant))


def test_a_later_row_with_the_same_unique_value_is_kept_and_reported(states: States) -> None:
    states.both("INSERT INTO users (id, email) VALUES ('a', 'a@x'), ('b', 'b@x')")
    states.now("DELETE FROM users; INSERT INTO users (id, email) VALUES ('c', 'a@x')")
    found = states.compare("users", restore=True)
    assert found.restored is not None
    assert (found.missing, found.restored.inserted, found.restored.kept) == (2, 1, 1)
    assert select(states.live, "SELECT id FROM users ORDER BY 1") == [("b",), ("c",)]


def test_a_missing_parent_is_a_clear_error_and_nothing_is_restored(states: States) -> None:
    states.both(
        "INSERT INTO users (id) VALUES ('a'), ('b'); INSERT INTO projects (id, name, slug, owner_id) "
        "SELECT gen_random_uuid(), id, id, id FROM users"
    )
    states.now("TRUNCATE users CASCADE; INSERT INTO users (id) VALUES ('a')")
    with pytest.raises(NotRestoredError, match=r"no row of projects.*users") as caught:
        states.compare("projects", restore=True)
    assert "refers to first" in caught.value.remedy
    assert states.rows("projects") == []
    states.compare("users", restore=True)
    assert states.compare("projects", restore=True).missing == 2


def test_identity_columns_keep_their_numbers_and_later_rows_get_others(states: States) -> None:
    prices = "INSERT INTO model_pricing (effective_date, provider, model, prompt_cost_per_1k, completion_cost_per_1k) "
    states.both(prices + "SELECT '2026-01-01', 'p', 'm' || n, 0, 0 FROM generate_series(1, 5) n")
    before = states.rows("model_pricing", live=False)
    states.then("UPDATE model_pricing SET created_at = '2026-01-01'")
    before = states.rows("model_pricing", live=False)
    states.now("TRUNCATE model_pricing RESTART IDENTITY")
    states.compare("model_pricing", restore=True)
    assert states.rows("model_pricing") == before
    states.now(prices + "VALUES ('2026-01-01', 'p', 'later', 0, 0)")
    assert len(states.rows("model_pricing")) == 6


def test_rows_that_refer_to_each_other_and_generated_columns_are_restored(states: States) -> None:
    states.both("""
        CREATE SCHEMA own;
        CREATE TABLE own.tree (id int PRIMARY KEY, parent int REFERENCES own.tree DEFERRABLE INITIALLY DEFERRED,
                               twice int GENERATED ALWAYS AS (id * 2) STORED, "Odd ""name" bytea, f real, n numeric);
        INSERT INTO own.tree SELECT n, 3000 - n FROM generate_series(0, 3000) n;
        UPDATE own.tree SET "Odd ""name" = '\\x00ff', f = 0.1, n = 1.50 WHERE id < 10;
    """)
    states.now("TRUNCATE own.tree")
    assert states.compare("own.tree", restore=True).missing == 3001
    assert states.rows("own.tree") == states.rows("own.tree", live=False)


def test_keys_of_any_type_are_found(states: States) -> None:
    states.both("""
        CREATE SCHEMA own;
        CREATE TYPE own.mood AS ENUM ('good', 'bad');
        CREATE TABLE own.odd (a text[], n numeric(6, 2), c char(5), m own.mood, j jsonb, b bytea, t timestamp, x float8,
                              PRIMARY KEY (a, n, c, m, j, b, t, x));
        INSERT INTO own.odd SELECT ARRAY['a,"\\', NULL, n::text], n / 3.0, 'c', 'bad', '{"k": [1, null]}', '\\x00ff',
                                   'infinity', 0.1 * n FROM generate_series(1, 5) n;
    """)
    states.now("DELETE FROM own.odd WHERE n < 1")
    assert states.compare("own.odd", "m = 'bad'", restore=True).missing == 2
    assert states.rows("own.odd") == states.rows("own.odd", live=False)


def test_rows_of_a_partitioned_table_are_restored(states: States) -> None:
    states.both("""
        CREATE SCHEMA own;
        CREATE TABLE own.parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE own.low PARTITION OF own.parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE own.high PARTITION OF own.parts FOR VALUES FROM (10) TO (20);
        INSERT INTO own.parts SELECT n, 'v' FROM generate_series(0, 19) n;
    """)
    states.now("DELETE FROM own.parts WHERE id IN (3, 15)")
    assert states.compare("own.parts", restore=True).missing == 2
    assert states.rows("own.parts") == states.rows("own.parts", live=False)


def test_keys_of_arrays_and_rows_are_found(states: States) -> None:
    states.both("""
        CREATE SCHEMA own;
        CREATE TYPE own.pair AS (a int, b text);
        CREATE TABLE own.t (k int[], p own.pair, d text, v int, PRIMARY KEY (k, p, d));
        INSERT INTO own.t SELECT ARRAY[n, NULL], (n, 'a,b')::own.pair, '{"a": 1}', n FROM generate_series(1, 9) n;
    """)
    states.now("UPDATE own.t SET v = 50 WHERE v = 5; DELETE FROM own.t WHERE v < 5")
    found = states.compare("own.t", "v < 9", restore=True)
    assert (found.missing, found.changed, found.added) == (4, 1, 0)
    states.then("UPDATE own.t SET v = 50 WHERE v = 5")
    assert states.rows("own.t") == states.rows("own.t", live=False)


def test_rows_outside_of_the_calendar_are_restored(states: States) -> None:
    states.both("""
        CREATE SCHEMA own;
        CREATE TABLE own.t (ts timestamptz NOT NULL, v int);
        SELECT create_hypertable('own.t', 'ts');
        INSERT INTO own.t VALUES ('0044-03-15 BC', 1), ('2026-01-01', 2), ('20261-11-29', 3);
    """)
    states.now("DELETE FROM own.t")
    assert states.compare("own.t", restore=True).missing == 3
    assert states.rows("own.t") == states.rows("own.t", live=False)


def test_a_new_column_gets_its_default(states: States) -> None:
    states.both("CREATE SCHEMA own; CREATE TABLE own.t (id int PRIMARY KEY, v text); INSERT INTO own.t VALUES (1, 'a')")
    states.now("ALTER TABLE own.t ADD added int NOT NULL DEFAULT 7; DELETE FROM own.t")
    assert states.compare("own.t", restore=True).missing == 1
    assert states.rows("own.t") == ["(1,a,7)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE own.t DROP v", "v is gone"),
        ("ALTER TABLE own.t RENAME v TO w", "v is gone"),
        ("ALTER TABLE own.t ALTER v TYPE varchar(5)", "v was text, now character varying"),
        ("ALTER TABLE own.t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, v)", "key of own.t has changed"),
        ("ALTER TABLE own.t ADD w int; UPDATE own.t SET w = 1; ALTER TABLE own.t ALTER w SET NOT NULL", "column w"),
        (
            (
                "CREATE FUNCTION own.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
                "CREATE TRIGGER own_trigger BEFORE INSERT ON own.t FOR EACH ROW EXECUTE FUNCTION own.f()"
            ),
            "own_trigger",
        ),
        ("CREATE RULE own_rule AS ON INSERT TO own.t DO ALSO SELECT 1", "rewrite rules"),
        ("ALTER TABLE own.t SET UNLOGGED", "unlogged"),
        ("CREATE TABLE own.child () INHERITS (own.t)", "inherit"),
        ("DROP TABLE own.t", "existed at"),
        ("ALTER TABLE own.t RENAME TO gone; CREATE VIEW own.t AS TABLE own.gone", "a view"),
    ],
)
def test_a_table_that_has_changed_since_is_refused(states: States, change: str, message: str) -> None:
    states.both("CREATE SCHEMA own; CREATE TABLE own.t (id int PRIMARY KEY, v text); INSERT INTO own.t VALUES (1, 'a')")
    states.now(change)
    with pytest.raises(TableRefusedError, match=message):
        states.compare("own.t", restore=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("nothing", "there is no table nothing"),
        ("own.late", "did not exist"),
        ("a.b.c.d", "no name of a table"),
        ("users; DROP TABLE users", "there is no table"),
        ('"users', "there is no table"),
        ("llm_metrics_1min", "is a view"),
        ("observatory.llm_metrics_1min", "belongs to the stack"),
        ("pg_class", "belongs to the stack or to the server"),
        ("llm_traces_ts", "an index"),
        ("own.bag", "no key and no time"),
    ],
)
def test_what_is_no_table_of_rows_is_refused(states: States, table: str, message: str) -> None:
    states.both("CREATE SCHEMA own; CREATE TABLE own.bag (v int); INSERT INTO own.bag VALUES (1), (1), (2)")
    states.now("CREATE TABLE own.late (id int PRIMARY KEY); DELETE FROM own.bag WHERE v = 2")
    with pytest.raises(TableRefusedError, match=message):
        states.compare(table, restore=True)


def test_the_difference_of_a_table_without_key_and_time_is_shown(states: States) -> None:
    states.both("CREATE SCHEMA own; CREATE TABLE own.bag (v int); INSERT INTO own.bag VALUES (1), (1), (2)")
    states.now("DELETE FROM own.bag; INSERT INTO own.bag VALUES (1), (3)")
    found = states.compare("own.bag")
    assert (found.missing, found.changed, found.added) == (2, 0, 1)


def test_rows_that_are_not_kept_any_more_stay_away(states: States) -> None:
    states.both(
        logs(4) + "; INSERT INTO llm_logs (ts, log_level, message) VALUES "
        f"(timestamptz '{(NOON - timedelta(days=50)).isoformat()}', 'INFO', 'old')"
    )
    states.now("DELETE FROM llm_logs")
    found = states.compare("llm_logs", restore=True)
    assert (found.missing, found.expired) == (4, 1)
    assert len(states.rows("llm_logs")) == 4


def test_the_aggregates_of_restored_rows_are_refreshed(states: States) -> None:
    """Days ago: the scheduled refresh of a minute does not come back to them."""
    states.both(traces(days=5))
    states.now("CALL observatory.refresh_aggregate('llm_metrics_1min', now() - INTERVAL '10 days')")
    whole = states.rows("llm_metrics_1min")
    states.now("DELETE FROM llm_traces WHERE trace_id IN ('trace 1', 'trace 2', 'trace 3')")
    states.now("CALL observatory.refresh_aggregate('llm_metrics_1min', now() - INTERVAL '10 days')")
    assert states.rows("llm_metrics_1min") != whole
    found = states.compare("llm_traces", restore=True)
    assert found.restored is not None
    assert "llm_metrics_1min" in found.restored.refreshed
    assert states.rows("llm_metrics_1min") == whole
    states.now(
        "TRUNCATE observatory.llm_metrics_1min, observatory.llm_metrics_1hour, observatory.llm_metrics_1day, "
        "observatory.llm_error_summary, observatory.cost_analysis_hourly"
    )


@pytest.mark.parametrize("lock", [FLASHBACK_LOCK, MIGRATION_LOCK], ids=lambda lock: lock.name)
def test_one_restore_at_a_time_and_none_beside_a_migration(states: States, lock: AdvisoryLock) -> None:
    with psycopg.connect(states.live, autocommit=True) as other, session_lock(other, lock, wait_s=0):
        with pytest.raises(LockHeldError):
            states.compare("users", restore=True)
        assert states.compare("users").missing == 0


def test_too_little_disk_is_refused_before_it_is_full(states: States) -> None:
    states.both(traces())
    states.now("DELETE FROM llm_traces")
    with pytest.raises(FlashbackError, match="do not fit"):
        states.compare("llm_traces", restore=True, free_bytes=lambda: 1000)
    assert states.rows("llm_traces") == []


def test_a_lock_of_another_session_ends_the_insert_and_not_the_traffic(
    states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory.backups.flashback.restoring.LOCK_TIMEOUT", "50ms")
    states.both("INSERT INTO users (id) VALUES ('a')")
    states.now("DELETE FROM users")
    with psycopg.connect(states.live) as other:
        other.execute("LOCK TABLE users IN SHARE MODE")
        with pytest.raises(NotRestoredError, match="lock timeout"):
            states.compare("users", restore=True)
    assert states.rows("users") == []
