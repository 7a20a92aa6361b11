"""Cursors: what they encode, and what is refused."""

import base64
import hashlib

import pytest

from service.storage_service import cursors
from service.storage_service.costs import Grouping
from service.storage_service.problems import InvalidRequest
from service.storage_service.spans import NEWEST_FIRST, OF_TRACE

OF = ("traces", None, "gpt-4o")
TS = "2026-11-28T11:08:14.123456+00:00"


def forged(payload: bytes) -> str:
    """Return a text with the check sum of its content."""
    return base64.urlsafe_b64encode(hashlib.sha256(payload).digest()[:8] + payload).decode().rstrip("=")


def test_a_position_of_any_texts_is_read_back() -> None:
    values = [TS, None, "", "-", "=", "ü\n🗼", "x" * 512]
    cursor = cursors.encode(values, of=OF)
    assert cursors.decode(cursor, of=OF, parse=list) == values
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum()  # needs no escaping in a URL


def test_the_longest_names_fit() -> None:
    assert len(cursors.encode([TS, *["ü" * 256] * 4], of=OF)) < cursors.MAX_LENGTH


@pytest.mark.parametrize("of", [("traces", "openai", None), ("spans", "gpt-4o"), ()])
def test_a_cursor_of_another_list_is_refused(of: tuple[object, ...]) -> None:
    with pytest.raises(InvalidRequest, match="belongs to a list with other parameters"):
        cursors.decode(cursors.encode([TS], of=OF), of=of, parse=list)


@pytest.mark.parametrize("cursor", ["", "null", "1", "🗼", "%00", "a" * 8192, "=" * 20, "AAAA\n"])
def test_a_text_that_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a value of 'next'"):
        cursors.decode(cursor, of=OF, parse=list)


def test_every_changed_or_missing_character_is_noticed() -> None:
    cursor = cursors.encode([TS, "trace", "span"], of=OF)
    for place in range(len(cursor) - 1):  # the last character has bits that encode nothing
        for changed in (cursor[:place] + "AB"[cursor[place] == "A"] + cursor[place + 1 :], cursor[:place]):
            with pytest.raises(InvalidRequest, match="start again without 'cursor'"):
                cursors.decode(changed, of=OF, parse=list)


def test_a_cursor_of_another_version_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="was made by another version"):
        cursors.decode(forged(b"2anything"), of=OF, parse=list)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [TS],
        [TS, "trace"],
        [TS, "trace", "span", "more"],
        [TS, None, "span"],
        [None, "trace", "span"],
        ["", "trace", "span"],
        ["yesterday", "trace", "span"],
        ["2026-11-28T11:08:14", "trace", "span"],  # no time zone
        ["0001-01-01T00:00:00+23:59", "trace", "span"],  # not in UTC's years
    ],
)
def test_a_forged_position_is_refused(values: list[str | None]) -> None:
    for order in (NEWEST_FIRST, OF_TRACE):
        if len(values) == len(order.columns) and None not in values and values[0] == TS:
            continue
        with pytest.raises(InvalidRequest, match="has no position in this list"):
            cursors.decode(cursors.encode(values, of=OF), of=OF, parse=order.parse)


@pytest.mark.parametrize("values", [[TS], [TS, None, "u"], [None, "p", "u"], [TS, "p", "u", "more"]])
def test_a_forged_position_of_costs_is_refused(values: list[str | None]) -> None:
    grouping = Grouping(bucket="hour", dimensions=("provider", "user_id"))
    assert grouping.parse([TS, "p", None])[1:] == ("p", None)
    with pytest.raises(InvalidRequest, match="has no position in this list"):
        cursors.decode(cursors.encode(values, of=OF), of=OF, parse=grouping.parse)


def test_bytes_that_are_no_text_are_refused() -> None:
    list_of = cursors.encode([], of=OF)
    payload = base64.urlsafe_b64decode(list_of + "=" * (-len(list_of) % 4))[8:]
    with pytest.raises(InvalidRequest, match="has no position"):
        cursors.decode(forged(payload + b"\0=\xff"), of=OF, parse=list)
