"""A sample between two databases of a real server is repeatable and complete, and has no personal data."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory.database import catalogue
from observatory.database.errors import SampleError
from observatory.database.masked_sample import copy_sample
from observatory.database.sample_masks import product_tables
from tests.support.postgres import PostgresServer
from tests.support.sample_pair import KEY, TABLES, Pair, contents, execute, sample_pair, select

pytestmark = pytest.mark.slow

PRIVATE = "PRIVATE"
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def pair(postgres: PostgresServer) -> Iterator[Pair]:
    with sample_pair(postgres) as pair:
        yield pair


@pytest.fixture
def empty(pair: Pair) -> Pair:
    pair.empty()
    return pair


def add_traces(conninfo: str, number: int, *, spans: int = 3) -> None:
    """Traces whose spans lie on three days, each with a log line, of a few users."""
    execute(
        conninfo,
        f"""
        INSERT INTO users (id, email, name) SELECT 'u' || i, 'u' || i || '@{PRIVATE}.org', '{PRIVATE} ' || i
        FROM generate_series(0, 9) i;
        INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, input_text, duration_ms,
                                status_code, user_id)
        SELECT timestamptz '{NOW.isoformat()}' - make_interval(days => s), 'trace-' || t, 's' || s, 'chat', 'openai',
               'gpt', 'text', '{PRIVATE} ' || t, 1, 'OK', 'u' || t % 10
        FROM generate_series(1, {number}) t, generate_series(0, {spans - 1}) s;
        INSERT INTO llm_logs (ts, trace_id, log_level, message)
        SELECT ts, trace_id, 'INFO', '{PRIVATE}' FROM llm_traces;
        INSERT INTO llm_logs (ts, log_level, message) VALUES (now(), 'INFO', '{PRIVATE} without a trace')
        """,
    )


def test_about_the_fraction_is_copied_and_each_trace_is_whole(empty: Pair) -> None:
    add_traces(empty.source, 1000)

    sample = empty.copy(0.15)

    counts = select(empty.target, "SELECT trace_id, count(*) FROM llm_traces GROUP BY 1")
    assert 0.12 < len(counts) / 1000 < 0.18
    assert {count for _, count in counts} == {3}
    assert sample.spans == sample.logs == 3 * len(counts)
    assert sorted(select(empty.target, "SELECT trace_id, count(*) FROM llm_logs GROUP BY 1")) == sorted(counts)
    orphans = "SELECT count(*) FROM llm_traces WHERE user_id NOT IN (SELECT id FROM users)"
    assert select(empty.target, orphans) == [(0,)]
    assert PRIVATE not in json.dumps(contents(empty.target))


def test_a_sample_is_repeatable_and_a_smaller_one_is_a_subset(empty: Pair) -> None:
    add_traces(empty.source, 300)
    empty.copy(0.1)
    small = contents(empty.target)
    for table in TABLES:
        execute(empty.target, f"TRUNCATE {table} CASCADE")
    execute(empty.target, "TRUNCATE observatory.sample_days")
    empty.copy(0.1)
    again = contents(empty.target)
    empty.copy(0.4)

    assert again == small
    assert set(small["llm_traces"]) < set(contents(empty.target)["llm_traces"])


def test_a_second_run_copies_only_new_rows(empty: Pair) -> None:
    add_traces(empty.source, 100, spans=4)
    first = empty.copy()
    before = contents(empty.target)

    second = empty.copy()
    assert contents(empty.target) == before
    assert (second.spans, first.skipped, second.skipped) == (0, 0, first.windows - 2)  # today and yesterday may grow

    execute(empty.source, "UPDATE llm_traces SET span_id = 'late' WHERE span_id = 's0'")
    assert empty.copy().spans == len(before["llm_traces"]) // 4


def test_an_interrupted_run_continues(empty: Pair) -> None:
    add_traces(empty.source, 100, spans=5)

    def stop(start: datetime, spans: int) -> None:
        if start > NOW - timedelta(days=4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_sample(empty.source, empty.target, fraction=0.5, key=KEY, on_window=stop)
    rest = empty.copy()

    assert rest.skipped == 2
    counts = select(empty.target, "SELECT count(DISTINCT trace_id), count(*) FROM llm_traces")[0]
    assert counts[1] == 5 * counts[0]


private = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map(
    lambda text: f"{PRIVATE}{text}"
)
jsons = st.recursive(
    private | st.none() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(private, inner)
)
people = st.none() | private
spans = st.fixed_dictionaries(
    {
        "trace_id": st.sampled_from([f"trace-{number}" for number in range(8)]),
        "span_id": st.uuids().map(str),
        "user_id": people,
        "session_id": people,
        "input_text": people,
        "output_text": people,
        "error_message": people,
        "tags": st.none() | st.lists(private, max_size=3),
        **{
            name: st.none() | jsons
            for name in ("input_messages", "attributes", "resource_attributes", "events", "links")
        },
    }
)
JSONS = {"input_messages", "attributes", "resource_attributes", "events", "links", "metadata", "settings"}


def adapt(row: dict[str, Any]) -> dict[str, Any]:
    return {key: json.dumps(value) if key in JSONS and value is not None else value for key, value in row.items()}


@given(rows=st.lists(spans, min_size=1, max_size=12), names=st.lists(private, min_size=1, max_size=3, unique=True))
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_no_personal_data_reaches_the_target(pair: Pair, rows: list[dict[str, Any]], names: list[str]) -> None:
    pair.empty()
    columns = ", ".join(rows[0])
    values = ", ".join(f"%({name})s" for name in rows[0])
    fixed = "ts, span_name, provider, model, input_type, duration_ms, status_code"
    execute(
        pair.source,
        f"INSERT INTO llm_traces ({columns}, {fixed}) VALUES ({values}, now(), 'n', 'p', 'm', 'text', 1, 'OK')",
        [adapt(row) for row in rows],
    )
    logs = [adapt({"trace_id": row["trace_id"], "attributes": row["attributes"]}) for row in rows]
    log = f"VALUES (now(), %(trace_id)s, 'INFO', '{PRIVATE}', %(attributes)s)"
    execute(pair.source, f"INSERT INTO llm_logs (ts, trace_id, log_level, message, attributes) {log}", logs)
    user = "INSERT INTO users (id, email, name, metadata) VALUES (%(id)s, %(id)s || '@a.org', %(id)s, %(metadata)s)"
    execute(pair.source, user, [adapt({"id": name, "metadata": {name: name}}) for name in names])
    project = "INSERT INTO projects (name, slug, owner_id) VALUES (%s, 'private-' || md5(%s), %s)"
    execute(pair.source, project, [(name, name, name) for name in names])

    pair.copy(1)

    assert PRIVATE.lower() not in json.dumps(contents(pair.target)).lower()
    assert select(pair.target, "SELECT count(*) FROM llm_traces") == [(len(rows),)]
    before, after = (
        select(each, "SELECT cardinality(tags), input_text IS NULL, links IS NULL FROM llm_traces ORDER BY 1, 2, 3")
        for each in (pair.source, pair.target)
    )
    assert after == before  # what is null stays null
    assert len(select(pair.target, "SELECT FROM projects JOIN users ON owner_id = users.id")) == len(names)


def test_every_column_of_a_copied_table_has_a_mask() -> None:
    columns = {each.name for each in catalogue.load("apache").at(6) if each.kind == "column"}

    for table, masked in product_tables({}).items():
        own = {name.rsplit(".", 1)[1] for name in columns if name.startswith(f"public.{table}.")}
        assert set(masked.masks) == own - ({"id"} if table == "model_pricing" else set())


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(empty: Pair, fraction: float) -> None:
    with pytest.raises(SampleError, match="above 0 and at most 1"):
        empty.copy(fraction)


def test_a_short_key_is_refused(empty: Pair) -> None:
    with pytest.raises(SampleError, match=r"too few to keep pseudonyms secret\. Use at least 16"):
        empty.copy(key="short")


def test_a_database_is_not_copied_to_itself(empty: Pair) -> None:
    add_traces(empty.source, 5)
    before = contents(empty.source)

    with pytest.raises(SampleError, match="Source and target are the same database"):
        copy_sample(empty.source, f"{empty.source} application_name=other", fraction=1, key=KEY)
    assert contents(empty.source) == before
