"""The number of values in a JSON document is counted without parsing it, wherever the pieces are cut."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.storage_service.structure import NodeCounter

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
