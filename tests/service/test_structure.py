"""The number of values in a JSON document is counted without parsing it, wherever the pieces are cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage_service.structure import MAX_DIGITS, NodeCounter, has_long_number

TEXT = st.text(alphabet='a"\\[{,]}: é', max_size=8)
DOCUMENTS = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def marks(document: Any) -> int:
    """Return the number of opening brackets and commas in the text of a document."""
    if isinstance(document, dict):
        document = list(document.values())
    elif not isinstance(document, list):
        return 0
    return 1 + max(0, len(document) - 1) + sum(map(marks, document))


@given(DOCUMENTS, st.integers(min_value=1, max_value=30))
def test_count_is_exact_for_every_division_into_pieces(document: Any, size: int) -> None:
    text = json.dumps(document, ensure_ascii=False).encode()
    counter = NodeCounter()
    for start in range(0, len(text), size):
        counter.feed(text[start : start + size])
    assert counter.nodes == marks(document)


LONG = "1" * (MAX_DIGITS + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[{LONG}]", True),
        (f'["{LONG}", {{"a\\"": {LONG[1:]}}}]', False),
        (f'["{LONG}", "\\\\", {LONG}]', True),
        (f'{{"{LONG}": "\\"{LONG}"}}', False),
        (f"[1.{LONG}]", True),
        (f"[-{LONG[1:]}, {LONG[1:]}.{LONG[1:]}]", False),
    ],
)
def test_long_numbers_are_found_outside_strings(text: str, expected: bool) -> None:
    assert has_long_number(text.encode()) is expected
