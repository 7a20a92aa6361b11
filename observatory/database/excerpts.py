"""Excerpts of texts that messages quote: SQL and server messages may have megabytes."""

from __future__ import annotations

EXCERPT_LENGTH = 200


def excerpt(text: str, length: int = EXCERPT_LENGTH) -> str:
    """Return the start of a text in one line of printable characters, with at most `length` of them."""
    start = " ".join(text[: 4 * length].split())
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in start)
    return shown if len(shown) <= length and len(text) <= 4 * length else f"{shown[: length - 1]}…"
