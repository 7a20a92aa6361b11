"""What a sample leaves of the source: planted personal data, identifying numbers, references, times and own columns."""

import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from observatory.database.advisory_locks import SAMPLE_LOCK, session_lock
from observatory.database.errors import LockHeldError, SampleError
from observatory.database.masked_sample import copy_sample
from observatory.database.sample_columns import Masking
from observatory.database.sample_expressions import fingerprint
from tests.support.postgres import PostgresServer
from tests.support.sample_pair import KEY, TABLES, Pair, contents, execute, sample_pair, select

Row = dict[str, Any]
NOW = datetime.now(UTC)
PLANTED = 471
MARKS = ("jane.doe", "zz-planted", "4917012345")  # in names, addresses and numbers
TEXTS = """
    SELECT column_name, udt_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{}'
"""


@pytest.fixture(scope="module")
def shared(postgres: PostgresServer) -> Iterator[Pair]:
    with sample_pair(postgres) as pair:
        yield pair


@pytest.fixture
def pair(shared: Pair) -> Pair:
    shared.empty()
    return shared


def planted(column: str, number: int) -> str:
    return f"zz-planted-{column}-{number}-jane.doe+{number}@example.org"


def document(number: int) -> dict[str, Any]:
    mark = planted("json", number)
    return {
        mark: mark,
        "user_id": f"zz-planted-user-{number % 9}@jane.doe",
        "nested": [{"phone": 491701234500 + number, "as text": f"4917012345{number}"}, [mark, [mark], True, None, ""]],
        'quoted "zz-planted": ': 'a "zz-planted": \\" value\u00e9\n',
        "price": 4917012345.5,
    }


def span(number: int, draw: random.Random) -> dict[str, Any]:
    texts: tuple[str, ...] = (
        "parent_span_id",
        "span_name",
        "provider",
        "model",
        "input_text",
        "output_text",
        "error_message",
    )
    texts += ("session_id", "environment", "finish_reason", "span_kind", "input_type")
    prompt, completion = draw.randint(40, 4000), draw.randint(40, 900)
    return {
        **{name: planted(name, number) for name in texts},
        "trace_id": planted("trace", number),
        "span_id": planted("span", number),
        "user_id": f"zz-planted-user-{number % 9}@jane.doe",
        "tags": [planted("tag", number), f"4917012345{number}"],
        **{
            name: json.dumps(document(number))
            for name in ("input_messages", "attributes", "resource_attributes", "events", "links")
        },
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_cost_usd": prompt / 1000,
        "completion_cost_usd": completion / 1000,
        "total_cost_usd": (prompt + completion) / 1000,
        "duration_ms": draw.randint(50, 90_000),
        "ttft_ms": draw.randint(30, 4000),
        "status_code": draw.choice(["OK", "ERROR"]),
        "sample_rate": draw.random(),
        "ts": NOW - timedelta(seconds=draw.uniform(60, 3 * 86400)),
    }


def insert(conninfo: str, table: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    values = ", ".join(f"%({name})s" for name in names)
    execute(conninfo, f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})", rows)


def plant(conninfo: str, count: int = PLANTED) -> list[dict[str, Any]]:
    draw = random.Random(17)  # noqa: S311 - no secret
    spans = [span(number, draw) for number in range(count)]
    insert(conninfo, "llm_traces", spans)
    shared_names = ("ts", "trace_id", "span_id", "provider", "model", "environment", "attributes")
    logs = [
        {name: each[name] for name in shared_names}
        | {"log_level": planted("level", number), "message": planted("message", number)}
        for number, each in enumerate(spans)
    ]
    insert(conninfo, "llm_logs", logs)
    people = [
        {
            "id": f"zz-planted-user-{number}@jane.doe",
            "email": planted("email", number),
            "name": planted("name", number),
            "metadata": json.dumps(document(number)),
        }
        for number in range(9)
    ]
    insert(conninfo, "users", people)
    projects = [
        {
            "name": planted("project", number),
            "slug": f"zz-planted-{number}",
            "owner_id": f"zz-planted-user-{number}@jane.doe",
            "settings": json.dumps(document(number)),
        }
        for number in range(3)
    ]
    insert(conninfo, "projects", projects)
    price = {"prompt_cost_per_1k": 0.0025, "completion_cost_per_1k": 0.01, "effective_date": NOW - timedelta(days=40)}
    insert(conninfo, "model_pricing", [{"provider": planted("p", 1), "model": planted("m", 1)} | price])
    return spans


def dump(conninfo: str) -> str:
    """Every row of every table of the target that is not PostgreSQL's, as text: chunks and bookkeeping included.

    Tables and rows are sorted, because a changed row takes another place in its table and in the catalogue.
    """
    tables = """
        SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'm') AND nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
    """
    found = []
    with psycopg.connect(conninfo) as connection:
        for (name,) in connection.execute(tables).fetchall():
            with connection.cursor().copy(f"COPY (SELECT * FROM {name}) TO STDOUT".encode()) as rows:
                found += [f"{name} ", *sorted(bytes(row).decode() for row in rows)]
    return "".join(found)


def test_planted_personal_data_is_nowhere_in_the_target(pair: Pair) -> None:
    plant(pair.source)
    for table in TABLES:  # the plants reach every column that can have a text
        for column, kind in select(pair.source, TEXTS.format(table)):
            if kind in {"text", "_text", "jsonb"} and column != "status_code":
                [(count,)] = select(pair.source, f"SELECT count(*) FROM {table} WHERE {column}::text ~ 'zz-planted'")
                assert count, f"{table}.{column}"

    assert pair.copy(1).spans == PLANTED
    text = dump(pair.target).lower()

    assert text.count("trace-") >= 2 * PLANTED
    assert {mark: text.count(mark) for mark in MARKS} == dict.fromkeys(MARKS, 0)
    assert "localhost" not in text
    assert pair.source not in text


def test_no_trace_is_recognised_by_what_stays_or_by_its_numbers(pair: Pair) -> None:
    spans = plant(pair.source)
    pair.copy(1)
    names = [name for name in spans[0] if not name.endswith(("messages", "attributes", "events", "links"))]
    names += ["sampled", "length(input_text)", "length(output_text)", "length(error_message)"]
    columns = ", ".join(f"({name})::text" for name in names)
    before, after = (
        {row[0]: row[1:] for row in select(each, f"SELECT trace_id, {columns} FROM llm_traces")}
        for each in (pair.source, pair.target)
    )
    own = {name: f"trace-{fingerprint(KEY, 'trace', name)[:20]}" for name in before}
    assert set(own.values()) == set(after)
    positions = dict(enumerate(names))

    equal = Counter(
        positions[position]
        for name, row in before.items()
        for position, value in enumerate(row)
        if value == after[own[name]][position]
    )
    assert set(equal) == {"status_code", "sampled"}
    # All columns that stay, together with the tenth of the rate: no combination is of one trace only.
    staying = [position for position, name in positions.items() if name in equal]
    combinations = Counter(tuple(row[position] for position in staying) for row in before.values())
    recognised = [row for row in after.values() if combinations[tuple(row[position] for position in staying)] == 1]
    assert recognised == []


def test_references_stay_whole_in_columns_and_json(pair: Pair) -> None:
    plant(pair.source, 30)
    pair.copy(1)

    people = {row[0] for row in select(pair.target, "SELECT id FROM users")}
    assert len(people) == 9
    for query in (
        "SELECT user_id FROM llm_traces",
        "SELECT attributes ->> 'user_id' FROM llm_traces",
        "SELECT attributes ->> 'user_id' FROM llm_logs",
        "SELECT links ->> 'user_id' FROM llm_traces",
        "SELECT metadata ->> 'user_id' FROM users",
        "SELECT owner_id FROM projects",
    ):
        assert {row[0] for row in select(pair.target, query)} <= people, query
    same = "SELECT count(*) FROM llm_traces WHERE attributes ->> 'user_id' = user_id"
    assert select(pair.target, same) == [(30,)]
    joined = "SELECT count(*) FROM llm_traces JOIN llm_logs USING (trace_id, span_id, ts, provider, model)"
    assert select(pair.target, joined) == [(30,)]


def test_one_text_has_another_pseudonym_in_each_domain_and_with_each_key(pair: Pair) -> None:
    row: dict[str, Any] = dict.fromkeys(
        ("trace_id", "span_id", "span_name", "user_id", "session_id", "provider", "model"), "same"
    )
    row |= {"duration_ms": 1, "environment": "same", "tags": ["same"], "ts": NOW - timedelta(hours=1)}
    insert(pair.source, "llm_traces", [row | {"input_type": "same", "status_code": "OK"}])
    columns = "trace_id, span_id, span_name, user_id, session_id, provider, model, environment, tags[1], input_type"
    pair.copy(1)
    [first] = select(pair.target, f"SELECT {columns} FROM llm_traces")
    pair.copy(1, key=KEY[::-1], save_key=lambda: None)
    [second] = select(pair.target, f"SELECT {columns} FROM llm_traces")

    digests = [value.rsplit("-", 1)[1] for value in (*first, *second)]
    assert len(set(digests)) == len(digests) == 20


def test_null_stays_null_and_empty_stays_empty(pair: Pair) -> None:
    fixed: Row = {"span_name": "n", "provider": "p", "model": "m", "input_type": "chat", "duration_ms": 0, "ts": NOW}
    rows = [{"trace_id": "t", "span_id": f"{number}", "status_code": "OK", **fixed} for number in range(2)]
    empties = {"input_text": "", "input_messages": "[]", "attributes": "{}", "links": '["", null]', "tags": []}
    nulls = "output_text, input_messages, attributes, links, tags, user_id, total_tokens, total_cost_usd, sample_rate"
    insert(pair.source, "llm_traces", [rows[0] | dict.fromkeys(empties), rows[1] | empties])
    pair.copy(1)

    found = select(pair.target, f"SELECT {nulls}, input_text FROM llm_traces ORDER BY input_text NULLS FIRST")
    assert found[0] == (None,) * 10
    assert found[1] == (None, [], {}, ["", None], [], None, None, None, None, "")


def test_order_and_durations_within_a_trace_stay_and_times_do_not(pair: Pair) -> None:
    fixed: Row = {"span_name": "n", "provider": "p", "model": "m", "input_type": "chat", "status_code": "OK"}
    rows = []
    for trace in range(40):
        start = NOW - timedelta(minutes=30 + 47 * trace)
        for number in range(5):  # each one is inside the one before
            offset, length = timedelta(milliseconds=700 * number), 60_000 - 3000 * number
            row = {"trace_id": f"t{trace}", "span_id": f"{number}", "ts": start + offset, "duration_ms": length}
            rows.append(row | fixed)
    insert(pair.source, "llm_traces", rows)
    pair.copy(1)

    moved = []
    for name, trace in ((f"trace-{fingerprint(KEY, 'trace', f't{each}')[:20]}", each) for each in range(40)):
        found = select(pair.target, f"SELECT ts, duration_ms FROM llm_traces WHERE trace_id = '{name}' ORDER BY 2 DESC")
        times, ends = [row[0] for row in found], [row[0] + timedelta(milliseconds=row[1]) for row in found]
        assert times == sorted(times)
        assert ends == sorted(ends, reverse=True)
        assert timedelta(milliseconds=700) not in {later - first for first, later in itertools.pairwise(times)}
        assert 0.79 < found[0][1] / 60_000 < 1.21
        moved.append(NOW - timedelta(minutes=30 + 47 * trace) - times[0])
    assert all(timedelta(0) < each < timedelta(days=8) for each in moved)
    assert len({each // timedelta(hours=1) for each in moved}) > 20


def test_totals_and_costs_stay_consistent_with_tokens_and_prices(pair: Pair) -> None:
    prices = {"prompt_cost_per_1k": 0.0025, "completion_cost_per_1k": 0.01, "effective_date": NOW - timedelta(days=40)}
    insert(pair.source, "model_pricing", [{"provider": "p", "model": "m"} | prices])
    fixed: Row = {"span_name": "n", "provider": "p", "model": "m", "input_type": "chat", "status_code": "OK"}
    fixed |= {"trace_id": "t", "span_id": "s", "ts": NOW - timedelta(hours=1), "duration_ms": 1}
    tokens = {"prompt_tokens": 4000, "completion_tokens": 900, "total_tokens": 4900}
    costs = {"prompt_cost_usd": 0.01, "completion_cost_usd": 0.009, "total_cost_usd": 0.019}
    insert(pair.source, "llm_traces", [fixed | tokens | costs])
    pair.copy(1)

    query = """
        SELECT prompt_tokens + completion_tokens = total_tokens, prompt_cost_usd + completion_cost_usd = total_cost_usd,
               abs(prompt_cost_usd / (prompt_cost_per_1k * prompt_tokens / 1000) - 1) < 0.001,
               abs(completion_cost_usd / (completion_cost_per_1k * completion_tokens / 1000) - 1) < 0.002,
               prompt_cost_per_1k = 0.0025, total_tokens = 4900
        FROM llm_traces JOIN model_pricing USING (provider, model)
    """
    assert select(pair.target, query) == [(True, True, True, True, False, False)]


def test_known_values_stay_and_others_of_their_domain_do_not(pair: Pair) -> None:
    fixed: Row = {"span_name": "n", "provider": "p", "input_type": "chat", "status_code": "OK", "duration_ms": 1}
    fixed |= {"ts": NOW, "attributes": '{"model": "gpt-4o", "tier": "gpt-4o"}'}
    rows = [{"trace_id": each, "span_id": each, "model": each} | fixed for each in ("gpt-4o", "gpt-4o-jane.doe")]
    insert(pair.source, "llm_traces", rows)
    masking = Masking(known_values={"model": frozenset({"gpt-4o", "it's"}), "key": frozenset({"tier"})})
    pair.copy(1, masking=masking)

    models = {row[0] for row in select(pair.target, "SELECT model FROM llm_traces")}
    assert "gpt-4o" in models
    assert len(models) == 2
    assert not any("jane" in model for model in models)
    documents = [row[0] for row in select(pair.target, "SELECT attributes FROM llm_traces")]
    assert [(each["model"], set(each["tier"])) for each in documents] == [("gpt-4o", {"x"})] * 2
    with pytest.raises(SampleError, match="values of user identify and cannot be known values"):
        pair.copy(1, masking=Masking(known_values={"user": frozenset({"alice"})}))
    with pytest.raises(SampleError, match=r"other masks or known values.* --new-key"):
        pair.copy(1)


def test_a_column_or_table_without_a_mask_is_refused_by_name_before_anything_is_copied(pair: Pair) -> None:
    plant(pair.source, 5)
    before = dump(pair.target)
    for conninfo in (pair.source, pair.target):
        execute(
            conninfo,
            """
            CREATE SCHEMA own; CREATE TABLE own.notes (body text NOT NULL, at timestamptz);
            ALTER TABLE llm_logs ADD COLUMN nickname text;
            """,
        )
    try:
        with pytest.raises(SampleError) as refused:
            pair.copy(1, masking=Masking(masks={"own.notes.at": "number", "llm_trace.x": "omit"}))
        with pytest.raises(SampleError) as bare:
            pair.copy(1)
    finally:
        for conninfo in (pair.source, pair.target):
            execute(conninfo, "ALTER TABLE llm_logs DROP COLUMN nickname; DROP SCHEMA own CASCADE")

    message = str(refused.value)
    for part in (
        "Nothing was copied: ",
        "names public.llm_trace.x, which the source does not have",
        "the column public.llm_logs.nickname (text) has no mask: set `llm-observatory:sample.masks`, for example",
        "`llm_logs.nickname: text`",
        "the column own.notes.body (text) has no mask",
        "`llm-observatory:sample.masks` of own.notes.at is number, which does not fit its type timestamp with",
    ):
        assert part in message
    assert "the table own.notes has no masks: set `llm-observatory:sample.masks`, `own.notes: omit`" in str(bare.value)
    assert dump(pair.target) == before


def test_a_source_that_may_not_be_read_is_refused_by_the_names_of_the_tables(pair: Pair) -> None:
    execute(pair.source, "CREATE ROLE sample_reader; GRANT SELECT ON llm_traces, llm_logs, users TO sample_reader")
    reader = f"{pair.source} options='-c role=sample_reader'"
    try:
        with pytest.raises(SampleError, match=r'may not read "public"\."projects": grant it SELECT'):
            copy_sample(reader, pair.target, fraction=1, key=KEY)
    finally:
        execute(pair.source, "DROP OWNED BY sample_reader; DROP ROLE sample_reader")


def test_own_tables_and_columns_are_copied_with_the_masks_of_the_settings(pair: Pair) -> None:
    plant(pair.source, 30)
    for conninfo in (pair.source, pair.target):
        execute(
            conninfo,
            """
            CREATE SCHEMA own;
            CREATE TABLE own.ratings (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, trace_id text NOT NULL,
                "By" text REFERENCES users, phone bigint, note varchar(12), at date, extra jsonb, internal text);
            CREATE TABLE own.replies (rating text PRIMARY KEY, parent text REFERENCES own.replies);
            CREATE TABLE own.secret (everything text);
            ALTER TABLE llm_traces ADD COLUMN team text;
            """,
        )
    execute(
        pair.source,
        """
        INSERT INTO own.ratings (trace_id, "By", phone, note, at, extra, internal)
            SELECT trace_id, user_id, 4917012345000, 'jane.doe', now(), attributes, 'jane.doe' FROM llm_traces;
        INSERT INTO own.replies VALUES ('jane.doe', NULL);
        INSERT INTO own.secret VALUES ('jane.doe');
        UPDATE llm_traces SET team = 'jane.doe'
        """,
    )
    kinds = {"trace_id": "trace", "By": "user", "phone": "number", "note": "reason", "at": "time", "extra": "json"}
    masks = {f"own.ratings.{name}": kind for name, kind in kinds.items()} | {"own.ratings.internal": "omit"}
    masks |= {
        "own.replies.rating": "text",
        "own.replies.parent": "omit",
        "own.secret": "omit",
        "llm_traces.team": "team",
    }
    try:
        for _ in range(2):
            pair.copy(0.5, masking=Masking(masks=masks))
        text = dump(pair.target)
        whole = 'SELECT count(*) FROM own.ratings JOIN llm_traces USING (trace_id) WHERE "By" = user_id'
        counts = [select(pair.target, query)[0][0] for query in (whole, "SELECT count(*) FROM llm_traces")]
        found = select(pair.target, "SELECT DISTINCT team, note FROM llm_traces, own.ratings")
    finally:
        for conninfo in (pair.source, pair.target):
            execute(conninfo, "ALTER TABLE llm_traces DROP COLUMN team; DROP SCHEMA own CASCADE")

    assert 0 < counts[0] == counts[1] < 30
    assert {mark: text.count(mark) for mark in MARKS} == dict.fromkeys(MARKS, 0)
    [(team, note)] = found
    assert team.startswith("team-")
    assert len(note) == 12


def test_a_repeated_sample_takes_over_what_changed_and_repeats_no_log_line(pair: Pair) -> None:
    plant(pair.source, 20)
    execute(pair.source, "INSERT INTO llm_logs SELECT * FROM llm_logs")  # each line twice
    pair.copy(1)
    before = contents(pair.target)
    execute(
        pair.source, "UPDATE llm_traces SET status_code = 'UNSET', output_text = NULL; UPDATE users SET name = NULL"
    )
    execute(pair.source, "INSERT INTO llm_logs SELECT * FROM llm_logs LIMIT 1")
    again = pair.copy(1)

    after = contents(pair.target)
    assert again.spans == select(pair.target, "SELECT count(*) FROM llm_traces WHERE status_code = 'UNSET'")[0][0] > 0
    assert len(after["llm_traces"]) == len(before["llm_traces"])
    assert (again.logs, len(after["llm_logs"])) in {(1, 41), (0, 40)}  # the line may be of a day that is done
    assert select(pair.target, "SELECT count(name) < 9 FROM users") == [(True,)]
    pair.copy(1)
    assert contents(pair.target) == after


def test_a_target_with_other_data_is_refused(pair: Pair) -> None:
    plant(pair.source, 5)
    own: Row = {"span_name": "n", "model": "m", "input_type": "chat", "status_code": "OK", "duration_ms": 1, "ts": NOW}
    stack = [("probe", "observatory.probe", None), ("shown", "openai", ["demonstration"])]
    rows = [{"trace_id": name, "span_id": "s", "provider": provider, "tags": tags} for name, provider, tags in stack]
    insert(pair.target, "llm_traces", [row | own for row in rows])
    assert pair.copy(1).spans == 5

    insert(pair.target, "llm_traces", [{"trace_id": "mine", "span_id": "s", "provider": "openai"} | own])
    insert(pair.target, "users", [{"id": "me"}])
    before = dump(pair.target)
    with_new_key: dict[str, Any] = {"save_key": lambda: pytest.fail("a key was stored"), "key": KEY[::-1]}
    for options in ({}, with_new_key):
        with pytest.raises(SampleError, match="has data that no sample copied, in llm_traces, users"):
            pair.copy(1, **options)
    assert dump(pair.target) == before
    assert pair.copy(1, keep_own_data=True).spans == 0
    assert dump(pair.target) == before


def test_a_new_key_empties_the_target_and_what_was_computed_from_it(pair: Pair) -> None:
    plant(pair.source, 20)
    pair.copy(1)
    execute(pair.target, "INSERT INTO observatory.llm_metrics_1hour SELECT * FROM observatory.llm_metrics_1hour_live")
    first = contents(pair.target)
    with pytest.raises(SampleError, match=r"has a sample with another key, .* --new-key"):
        pair.copy(1, key=KEY[::-1])
    assert contents(pair.target) == first

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair.copy(1, key=KEY[::-1], save_key=fail)
    assert contents(pair.target) == first  # a key that was not stored changes nothing

    saved: list[str] = []
    pair.copy(1, key=KEY[::-1], save_key=lambda: saved.append("key"))

    second = contents(pair.target)
    assert saved == ["key"]
    assert {table: len(rows) for table, rows in second.items()} == {table: len(rows) for table, rows in first.items()}
    assert not any(set(first[table]) & set(second[table]) for table in TABLES)
    assert select(pair.target, "SELECT count(*) FROM llm_metrics_1hour") == [(0,)]


def test_a_sample_of_an_earlier_version_is_refused_and_replaced_by_a_new_key(pair: Pair) -> None:
    plant(pair.source, 5)
    execute(pair.target, "CREATE TABLE observatory.sample_windows (sample text)")
    names = "ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code"
    execute(
        pair.target, f"INSERT INTO llm_traces ({names}) VALUES (now(), 'jane.doe', 's', 'n', 'p', 'm', 't', 1, 'OK')"
    )
    with pytest.raises(SampleError, match=r"earlier version, in which names, models and times are readable.*--new-key"):
        pair.copy(1)

    pair.copy(1, save_key=lambda: None)

    assert "jane.doe" not in dump(pair.target)
    assert select(pair.target, "SELECT count(*) FROM llm_traces") == [(5,)]
    assert pair.copy(1).spans == 0


def test_two_samples_at_once_are_refused_and_leave_one_whole(pair: Pair) -> None:
    plant(pair.source, 30)
    with (
        psycopg.connect(pair.target, autocommit=True, application_name="observatory:sample") as other,
        session_lock(other, SAMPLE_LOCK, wait_s=0),
        pytest.raises(LockHeldError, match=r"lock of the masked sample is held by pid \d+ \(observatory:sample"),
    ):
        pair.copy(1)
    results: list[object] = []

    def run() -> None:
        try:
            results.append(pair.copy(1).spans)
        except LockHeldError as error:
            results.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(results)[30] == 1
    assert select(pair.target, "SELECT count(*) FROM llm_logs") == [(30,)]


def test_rows_older_than_the_target_keeps_them_are_not_copied(pair: Pair) -> None:
    fixed: Row = {"span_name": "n", "provider": "p", "model": "m", "input_type": "chat", "status_code": "OK"}
    ages = [1, 40, 80, 84, 86, 88, 89, 89.9]
    rows = [
        {"trace_id": f"t{age}", "span_id": "s", "ts": NOW - timedelta(days=age), "duration_ms": 1} | fixed
        for age in ages
    ]
    insert(pair.source, "llm_traces", rows)
    logs = [{"trace_id": row["trace_id"], "ts": row["ts"], "log_level": "INFO", "message": "m"} for row in rows]
    insert(pair.source, "llm_logs", logs)
    pair.copy(1)

    [(count, inside)] = select(pair.target, "SELECT count(*), min(ts) >= now() - INTERVAL '90 days' FROM llm_traces")
    assert 3 <= count < len(ages)
    assert inside
    assert select(pair.target, "SELECT count(*) FROM llm_logs") == [(1,)]
