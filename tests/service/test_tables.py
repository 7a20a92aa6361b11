import json
from datetime import UTC, datetime

from service.storage_service.items import Window
from service.storage_service.traces import TRACES, Trace
from tests.service.harness import item, parse_batch


def parse(*items: dict[str, object]) -> list[Trace]:
    window = Window(earliest=datetime(2000, 1, 1, tzinfo=UTC), latest=datetime(2100, 1, 1, tzinfo=UTC))
    return parse_batch(json.dumps({"items": items}).encode(), Trace, window)


def test_row_has_the_columns_of_the_item() -> None:
    (row,) = TRACES.rows(parse(item(provider="anthropic", attributes={"é": [1]}, tags=["a"])))
    values = dict(zip(TRACES.columns, row, strict=True))
    assert values["provider"] == "anthropic"
    assert json.loads(values["attributes"]) == {"é": [1]}
    assert values["tags"] == ["a"]
    assert values["events"] is None


def test_repeated_key_makes_one_row_and_the_later_value_wins() -> None:
    first = item(model="first", user_id="u")
    (row,) = TRACES.rows(parse(first, {**first, "model": "second", "user_id": None, "status_code": "UNSET"}))
    values = dict(zip(TRACES.columns, row, strict=True))
    assert (values["model"], values["user_id"], values["status_code"]) == ("second", "u", "OK")


def test_same_span_at_another_time_is_another_row() -> None:
    one = item(ts="2026-01-01T00:00:00Z")
    assert len(TRACES.rows(parse(one, {**one, "ts": "2026-01-01T00:00:01Z"}))) == 2


def test_rows_are_in_the_order_of_keys() -> None:
    rows = TRACES.rows(parse(*(item(trace_id=trace_id) for trace_id in "cab")))
    assert [row[TRACES.columns.index("trace_id")] for row in rows] == ["a", "b", "c"]
