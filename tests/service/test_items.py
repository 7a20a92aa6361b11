import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage_service.fields import MAX_INT, MAX_NAME, MAX_TEXT
from service.storage_service.items import MAX_DEPTH, MAX_ITEM_NODES, MAX_ITEMS, MAX_LENIENT_BYTES, Window
from service.storage_service.problems import MAX_ERRORS, ContentTooLarge, InvalidRequest
from service.storage_service.traces import Trace
from tests.service.harness import item, parse_batch

NOW = datetime.now(UTC)
WINDOW = Window(earliest=NOW - timedelta(days=90), latest=NOW + timedelta(days=1))


def parse(*items: Any) -> list[Trace]:
    return parse_batch(json.dumps({"items": items}).encode(), Trace, WINDOW)


def rejection(*items: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse(*items)
    return raised.value


def test_defaults_match_the_schema() -> None:
    (trace,) = parse(item())
    assert (trace.span_kind, trace.sampled, trace.parent_span_id) == ("internal", True, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00+00:00"),
        ("2026-11-20t12:00:00z", "2026-11-20T12:00:00+00:00"),
        ("2026-11-20T12:00:00.123456789+05:30", "2026-11-20T06:30:00.123456+00:00"),
        ("2026-11-20T12:00:00.5-08:00", "2026-11-20T20:00:00.500000+00:00"),
    ],
)
def test_rfc_3339_times_are_parsed(text: str, expected: str) -> None:
    window = Window(earliest=datetime(2026, 1, 1, tzinfo=UTC), latest=datetime(2027, 1, 1, tzinfo=UTC))
    (trace,) = parse_batch(json.dumps({"items": [item(ts=text)]}).encode(), Trace, window)
    assert trace.ts.isoformat() == expected


BAD_FIELDS = [
    ("ts", 1763900000, "must be an RFC 3339"),
    ("ts", "1763900000", "must be an RFC 3339"),
    ("ts", "2026-11-20T12:00:00", "must be an RFC 3339"),
    ("ts", "2026-11-20", "must be an RFC 3339"),
    ("ts", "2026-02-30T12:00:00Z", "must be a valid date and time"),
    ("ts", "0001-01-01T00:00:00+01:00", "must be a valid date and time"),
    ("ts", "2021-01-01T00:00:00Z", "is older than the retention"),
    ("ts", "2099-01-01T00:00:00Z", "is in the future"),
    ("ts", None, "must be an RFC 3339"),
    ("trace_id", "", "must match pattern"),
    ("trace_id", "a/b", "must match pattern"),
    ("trace_id", "a" * (MAX_NAME + 1), "must match pattern"),
    ("trace_id", "abc\n", "must match pattern"),
    ("span_id", 7, "must be a valid string"),
    ("provider", "", "at least 1 character"),
    ("provider", "é" * (MAX_NAME + 1), f"at most {MAX_NAME} characters"),
    ("provider", "open\0ai", "U+0000"),
    ("model", None, "must be a valid string"),
    ("span_kind", None, "must be a valid string"),
    ("input_text", "x" * (MAX_TEXT + 1), f"at most {MAX_TEXT} bytes"),
    ("input_text", "é" * (MAX_TEXT // 2 + 1), f"at most {MAX_TEXT} bytes"),
    ("output_text", "\0", "U+0000"),
    ("duration_ms", -1, "greater than or equal to 0"),
    ("duration_ms", MAX_INT + 1, f"less than or equal to {MAX_INT}"),
    ("duration_ms", 1.5, "must be a valid integer"),
    ("duration_ms", "5", "must be a valid integer"),
    ("duration_ms", True, "must be a valid integer"),
    ("prompt_tokens", 10**30, f"less than or equal to {MAX_INT}"),
    ("total_cost_usd", float("nan"), "must be a finite number"),
    ("total_cost_usd", float("inf"), "must be a finite number"),
    ("total_cost_usd", -0.01, "greater than or equal to 0"),
    ("total_cost_usd", 10000, "must be less than 10000"),
    ("total_cost_usd", 9999.9999999951, "must be less than 10000"),
    ("total_cost_usd", "0.5", "must be a valid number"),
    ("sample_rate", 1.01, "less than or equal to 1"),
    ("sample_rate", float("nan"), "finite number"),
    ("status_code", "ok", "must be 'OK', 'ERROR' or 'UNSET'"),
    ("sampled", 1, "must be a valid boolean"),
    ("tags", ["a"] * 65, "at most 64 items"),
    ("attributes", [1], "must be a valid dictionary"),
    ("attributes", {"a": float("inf")}, "NaN or a number outside the range"),
    ("attributes", {"a": {"b": "\0"}}, "U+0000"),
    ("attributes", {"\0": 1}, "U+0000"),
    ("attributes", {"a": "x" * MAX_TEXT}, f"at most {MAX_TEXT} bytes"),
    ("events", {"a": 1}, "must be a valid list"),
    ("latency", 5, "is not a known field"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD_FIELDS)
def test_invalid_field_is_named_with_its_item(name: str, value: Any, reason: str) -> None:
    errors = rejection(item(), item(**{name: value})).errors
    assert [(error.item, error.field) for error in errors] == [(1, name)]
    assert reason in errors[0].reason


def test_invalid_list_element_is_named() -> None:
    (error,) = rejection(item(tags=["a", "b\0"])).errors
    assert (error.item, error.field) == (0, "tags.1")


def test_every_invalid_item_is_named() -> None:
    errors = rejection(item(duration_ms=-1), item(), item(duration_ms=-1, model=5)).errors
    assert [(error.item, error.field) for error in errors] == [(0, "duration_ms"), (2, "model"), (2, "duration_ms")]


def test_validation_stops_after_a_few_errors() -> None:
    errors = rejection(*[item(duration_ms=-1)] * MAX_ITEMS).errors
    assert len(errors) == MAX_ERRORS


@pytest.mark.parametrize("entry", [None, 5, "x", []])
def test_item_that_is_not_an_object_is_named(entry: Any) -> None:
    (error,) = rejection(item(), entry).errors
    assert (error.item, error.field) == (1, "item")


def test_item_with_thousands_of_fields_is_not_validated() -> None:
    (error,) = rejection({f"field_{number}": 1 for number in range(5000)}).errors
    assert "5000 fields" in error.reason


@pytest.mark.parametrize("name", sorted(name for name, field in Trace.model_fields.items() if field.is_required()))
def test_missing_field_is_named(name: str) -> None:
    (error,) = rejection({key: value for key, value in item().items() if key != name}).errors
    assert (error.field, error.reason) == (name, "is required")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"items": [}', b'{"items": []} x', b'{"items": [NaN}', b'{"items": ["\\ud800"]}']
)
def test_body_that_is_not_json_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body: is not JSON"):
        parse_batch(body, Trace, WINDOW)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"items": {}}', b"null", b'"\xff"', b"[" * 5000])
def test_body_without_items_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="items: the body must be"):
        parse_batch(body, Trace, WINDOW)


def test_body_that_is_nested_too_deeply_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="body: is nested too deeply"):
        parse_batch(b'{"items": [' + b"[" * 100_000, Trace, WINDOW)


def nested(depth: int) -> bytes:
    """Return an item whose attributes have lists in lists."""
    text = json.dumps(item(attributes={"a": 0}))
    return text.replace('"a": 0', f'"a": {"[" * depth}{"]" * depth}').encode()


@pytest.mark.parametrize("text", [b'"\xff"', b'{"ts": "\xff"}', nested(MAX_DEPTH + 5), b'{"ts": %s}' % (b"1" * 40_000)])
def test_item_that_is_not_json_is_named(text: bytes) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_batch(b'{"items": [%s, %s]}' % (json.dumps(item()).encode(), text), Trace, WINDOW)
    (error,) = rejected.value.errors
    assert (error.item, error.field) == (1, "item")
    assert error.reason.startswith("is not JSON")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([0] * (MAX_ITEM_NODES + 1), f"has more than {MAX_ITEM_NODES} values in objects and lists"),
        ([10**400, "x" * MAX_ITEM_NODES], "has a number of more than 400 digits"),
    ],
    ids=["values", "digits"],
)
def test_item_that_costs_too_much_is_not_parsed(value: Any, reason: str) -> None:
    (error,) = rejection(item(), item(events=value)).errors
    assert (error.item, error.field, error.reason) == (1, "item", reason)


def test_large_item_is_parsed() -> None:
    sent = item(input_text="1" * 500_000, events=[0] * (MAX_ITEM_NODES - 100))
    (trace,) = parse(sent)
    assert trace.input_text == sent["input_text"]


def test_nested_json_is_accepted_up_to_the_limit() -> None:
    assert parse_batch(b'{"items": [%s]}' % nested(MAX_DEPTH - 3), Trace, WINDOW)


def test_thousand_items_are_accepted_and_one_more_is_rejected() -> None:
    one = item()
    assert len(parse(*[one] * MAX_ITEMS)) == MAX_ITEMS
    with pytest.raises(ContentTooLarge, match="1001 items, at most 1000"):
        parse(*[one] * (MAX_ITEMS + 1))


@given(st.floats(min_value=0, max_value=9999.99))
def test_cost_is_left_to_the_column_to_round(cost: float) -> None:
    (trace,) = parse(item(total_cost_usd=cost))
    assert trace.total_cost_usd == cost


@given(st.text(max_size=200))
def test_text_is_stored_or_rejected_as_a_whole(text: str) -> None:
    if "\0" in text:
        assert rejection(item(input_text=text)).errors[0].field == "input_text"
    else:
        (trace,) = parse(item(input_text=text))
        assert trace.input_text == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(Trace.model_fields)), JSON)
def test_any_value_is_accepted_or_its_field_is_named(name: str, value: Any) -> None:
    try:
        (trace,) = parse(item(**{name: value}))
    except InvalidRequest as invalid:
        for error in invalid.errors:
            assert error.field.partition(".")[0] in {name, "item", "body"}
            assert error.reason
    else:
        assert (getattr(trace, name) is None) == (value is None)


def test_large_body_with_nan_is_not_parsed_at_once() -> None:
    """Thousands of long numbers beside one NaN would stop the event loop for most of a second."""
    numbers = b",".join([b"7" * 4000] * 100)
    body = b'{"items": [{"ts": NaN, "attributes": {"a": [%s]}}]}' % numbers
    assert len(body) > MAX_LENIENT_BYTES
    with pytest.raises(InvalidRequest) as raised:
        parse_batch(body, Trace, WINDOW)
    assert raised.value.errors[0].reason.startswith("is not JSON: ")


def test_long_name_of_an_unknown_field_is_cut() -> None:
    (error,) = rejection({**item(), "k" * 1_000_000: 1}).errors
    assert (error.field, error.reason) == ("k" * MAX_NAME + "…", "is not a known field")


def test_reasons_have_one_form() -> None:
    fields = {"trace_id": "a/b", "model": "", "provider": "p" * (MAX_NAME + 1), "tags": ["t"] * 65, "status_code": "?"}
    errors = rejection(item(**fields)).errors
    assert {error.field for error in errors} == set(fields)
    assert [error.reason for error in errors if not error.reason.startswith("must ")] == []
