"""Differences between the objects of a database and the catalogue, as text for reports."""

from __future__ import annotations

from itertools import zip_longest

from observatory.database.catalogue.objects import Objects

_SHOWN_LENGTH, _SHOWN_BEFORE = 160, 40  # characters


def list_differences(expected: Objects, found: Objects) -> list[str]:
    """Return a line for each expected object that is missing or differs."""
    return [
        f"{each.name} is missing" if each not in found else f"{each.name}: {describe_difference(found[each], text)}"
        for each, text in sorted(expected.items())
        if found.get(each) != text
    ]


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
