"""Cursors of lists: the position after which the next page begins, as an opaque text.

A cursor has the position of the last item of a page, which the client has already read, and a digest of the request's
other parameters. It gives no access to anything: each page is authorized and filtered like the first one. Its check sum
detects a text that was cut or changed, so that no page silently begins in another place.

Rows that are stored meanwhile move no other row to another page, because a position is a key and not a count.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from .problems import FieldError, InvalidRequest

VERSION = b"1"
MAX_LENGTH = 8192
"""Characters: four names of 512 bytes, which is their limit in the database, take 2,800."""
_DIGEST_BYTES = 8
_SEPARATOR = b"\0"  # the one character that no stored text contains
_AGAIN = "send the parameters of the first page with it, or start again without 'cursor'"

Value = str | None
Position = TypeVar("Position")


def encode(values: Sequence[Value], *, of: Sequence[object]) -> str:
    """Return the cursor of a position.

    Args:
        values: texts that identify the last item of a page among all items of the list.
        of: the parameters that select and order the items.
    """
    position = (("-" if value is None else f"={value}").encode() for value in values)
    payload = VERSION + _SEPARATOR.join((_digest_of(of), *position))
    return base64.urlsafe_b64encode(_digest(payload) + payload).decode().rstrip("=")


def decode(cursor: str, *, of: Sequence[object], parse: Callable[[Sequence[Value]], Position]) -> Position:
    """Return the position of a cursor.

    Args:
        cursor: as the client sent it.
        of: the parameters of this request, see `encode`.
        parse: converts the values of the position; raises ValueError if they are not those of this list.

    Raises:
        InvalidRequest: the cursor is not one of this service, or belongs to another list.
    """
    payload = _payload(cursor)
    if not payload.startswith(VERSION):
        raise _invalid("was made by another version of the service: start again without 'cursor'")
    of_list, _, position = payload[len(VERSION) :].partition(_SEPARATOR)
    if of_list != _digest_of(of):
        raise _invalid(f"belongs to a list with other parameters: {_AGAIN}")
    try:
        parts = position.decode().split(_SEPARATOR.decode())
        return parse([None if part == "-" else part.removeprefix("=") for part in parts])
    except (ValueError, OverflowError):
        raise _invalid("has no position in this list: start again without 'cursor'") from None


def parse_time(value: Value) -> datetime:
    """Return the time of a position.

    Raises:
        ValueError: it is not a time with a time zone.
    """
    time = datetime.fromisoformat(value or "")
    if time.tzinfo is None:
        raise ValueError("no time zone")
    return time.astimezone(UTC)


def _payload(cursor: str) -> bytes:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    payload = raw[_DIGEST_BYTES:]
    if not payload or raw[:_DIGEST_BYTES] != _digest(payload):
        raise _invalid("is not a value of 'next': send that value unchanged, or start again without 'cursor'")
    return payload


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_DIGEST_BYTES]


def _digest_of(parameters: Sequence[object]) -> bytes:
    return _digest(repr(parameters).encode()).hex().encode()


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest([FieldError(field="cursor", reason=reason)])
