"""Differences between the objects of a database and the catalogue, as text for reports."""

from __future__ import annotations

from itertools import zip_longest

_SHOWN_LENGTH, _SHOWN_BEFORE = 160, 40  # characters


def describe_difference(found: str, expected: str) -> str:
    """Return both definitions in one line; long ones start shortly before the first difference."""
    first, second = repr(found)[1:-1], repr(expected)[1:-1]
    start = 0
    if max(len(first), len(second)) > _SHOWN_LENGTH:
        pairs = enumerate(zip_longest(first, second))
        start = max(0, next(offset for offset, (old, new) in pairs if old != new) - _SHOWN_BEFORE)
    return f"is {_cut(first, start)}, expected {_cut(second, start)}"


def _cut(text: str, start: int) -> str:
    end = start + _SHOWN_LENGTH
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
