"""The fast decoder decodes what the models accept, with the same values, and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.storage_service.decoding import ItemDecoder
from service.storage_service.fields import MAX_TEXT
from service.storage_service.items import TimedItem
from service.storage_service.log_entries import LogEntry
from service.storage_service.measurements import Measurement
from service.storage_service.traces import Trace
from tests.service.harness import item, log_entry, measurement
from tests.service.test_items import BAD_FIELDS, JSON
from tests.service.test_traces_api import EVERYTHING

MAKE: dict[type[TimedItem], Any] = {Trace: item, Measurement: measurement, LogEntry: log_entry}
DECODERS = {model: ItemDecoder(model) for model in MAKE}
LIKELY = st.sampled_from([0, 1, -1, 1.0, 1.5, 2**31, 2**63, 1e308, True, "", "a", "a\n", "a/b", "OK", "a" * 129, ["a"]])


def decode(model: type[TimedItem], sent: dict[str, Any]) -> Any:
    return DECODERS[model].decode(json.dumps(sent).encode(), max_text_bytes=MAX_TEXT)


def assert_equal(decoded: Any, model: type[TimedItem], sent: dict[str, Any]) -> None:
    validated = model.model_validate(json.loads(json.dumps(sent)))
    assert {name: getattr(decoded, name) for name in model.model_fields} == vars(validated)


@pytest.mark.parametrize("model", MAKE)
def test_usual_items_are_decoded(model: type[TimedItem]) -> None:
    sent = MAKE[model]()
    assert_equal(decode(model, sent), model, sent)


def test_every_field_of_a_span_is_decoded() -> None:
    sent = item(**{**EVERYTHING, "input_messages": [{"role": "user", "content": [1.5, None, "\\\\u0041"]}]})
    assert_equal(decode(Trace, sent), Trace, sent)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, value, reason in BAD_FIELDS if "is " not in reason]
)
def test_invalid_fields_are_left_to_the_model(name: str, value: Any) -> None:
    assert decode(Trace, item(**{name: value})) is None


@settings(max_examples=500)
@given(st.sampled_from(sorted(MAKE, key=str)), st.integers(min_value=0), JSON | LIKELY)
def test_what_is_decoded_has_the_values_of_the_model(model: type[TimedItem], field: int, value: Any) -> None:
    names = sorted(model.model_fields)
    sent = MAKE[model](**{names[field % len(names)]: value})
    decoded = decode(model, sent)
    if decoded is not None:
        assert_equal(decoded, model, sent)
