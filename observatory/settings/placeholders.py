"""Placeholders that are still in a stack's file: values of examples, which no account has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from observatory.settings.reading import ConfigFile

# Domains that RFC 2606 reserves for examples, accounts and keys of AWS' documentation, ascending digits as in the
# stack files of this repository, and the SHA-256 of an empty file.
EXAMPLES = (
    re.compile(r"\bexample\.(com|net|org)\b"),
    re.compile(r"\b(111122223333|123456789012)\b"),
    re.compile(r"EXAMPLE\b"),
    re.compile(r"0a1b2c3d4e5f|0123456789ABCDEF|01234567-89ab-cdef"),
    re.compile(r"\be3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\b"),
)


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """A value of an example: its dotted key, its text and the line of its setting, None where that is unknown."""

    key: str
    value: str
    line: int | None


def placeholders(file: ConfigFile) -> tuple[Placeholder, ...]:
    """Return the placeholders of a stack's file, in the file's order."""
    return tuple(
        Placeholder(key=key, value=text, line=file.lines.get(key, file.lines.get(key.partition("[")[0])))
        for key, text in _leaves(file.values, "")
        if any(example.search(text) for example in EXAMPLES)
    )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the text of each value that contains no other."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _leaves(child, f"{key}[{number}]")
    else:
        yield key, str(value)
