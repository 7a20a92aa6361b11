"""Types of the fields that clients send. Each accepts only values that PostgreSQL can store.

Each limit stands beside its reason, and appears in the OpenAPI document.
"""

import json
import re
import struct
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, StringConstraints, ValidationInfo, WithJsonSchema
from pydantic_core import to_json

MAX_NAME = 128
"""Characters of a name: 512 bytes at most, and five of those fit PostgreSQL's limit of 2,704 bytes for an index row."""
MAX_TEXT = 2 * 1024 * 1024
"""Bytes, in UTF-8, of a prompt, an output or an error message, and of one JSON field in compact form: the default of
`STORAGE_MAX_TEXT_BYTES`, whose value is in the context of a validation."""
MAX_TAGS = 64
MAX_INT = 2**31 - 1  # PostgreSQL's integer
MAX_BIGINT = 2**63 - 1
_COST_LIMIT = 9999.999999995  # rounds to 10000, which numeric(12,8) cannot hold

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def text_limit(max_text_bytes: int) -> dict[str, int]:
    """Return the context of a validation with another limit than `MAX_TEXT`."""
    return {"max_text_bytes": max_text_bytes}


def _check_size(size: int, info: ValidationInfo) -> None:
    limit = info.context["max_text_bytes"] if info.context else MAX_TEXT
    if size > limit:
        raise ValueError(f"must have at most {limit} bytes")


def _bounded(value: str, info: ValidationInfo) -> str:
    _check_size(len(value), info)  # before the bytes of an even longer text are counted
    if not value.isascii():
        _check_size(len(value.encode()), info)
    return value


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the character U+0000, which PostgreSQL cannot store")
    return value


def timestamp(value: object) -> datetime:
    """Return the time that an RFC 3339 text has."""
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be an RFC 3339 date and time with a time zone, e.g. 2026-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a valid date and time in the years 1 to 9999") from None


def cost(value: float) -> float:
    """Check that a cost fits its column, which rounds it."""
    if value >= _COST_LIMIT:
        raise ValueError("must be less than 10000")
    return value


def single_precision(value: float) -> float:
    """Return the nearest value that PostgreSQL's real can have."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def json_text(value: Any) -> str:
    """Return the text that the database stores; no second conversion is needed."""
    text = to_json(value, inf_nan_mode="constants").decode()
    if "NaN" in text or "Infinity" in text:
        _check_numbers(value)
    if _NUL_ESCAPE.search(text):
        raise ValueError("must not contain the character U+0000, which PostgreSQL cannot store")
    return text


def _storable_json(value: Any, info: ValidationInfo) -> str:
    return _bounded(json_text(value), info)


def _check_numbers(value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("must not contain NaN or a number outside the range of a double") from None


Timestamp = Annotated[
    datetime,
    PlainValidator(timestamp),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "RFC 3339; stored to the microsecond"}),
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_without_nul)]
Identifier = Annotated[str, StringConstraints(pattern=rf"^[0-9A-Za-z._:+=-]{{1,{MAX_NAME}}}$")]
"""An identifier that needs no escaping in a URL's path."""
PATH_STEPS = (".", "..")


def _not_a_path_step(value: str) -> str:
    if value in PATH_STEPS:
        raise ValueError("must not be '.' or '..', which clients and proxies remove from the path of a URL")
    return value


TraceId = Annotated[Identifier, AfterValidator(_not_a_path_step)]
"""An identifier with which its trace can be read: it is a part of the URL's path."""
Text = Annotated[
    str,
    AfterValidator(_bounded),
    AfterValidator(_without_nul),
    Field(description=f"at most {MAX_TEXT} bytes in UTF-8, unless STORAGE_MAX_TEXT_BYTES sets another limit"),
]
Count = Annotated[int, Field(ge=0, le=MAX_INT)]
BigCount = Annotated[int, Field(ge=0, le=MAX_BIGINT)]
Double = Annotated[float, Field(allow_inf_nan=False)]
Cost = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False, description="US dollars, less than 10,000; rounded to 8 decimal places"),
    AfterValidator(cost),
]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(single_precision)]
Tags = Annotated[list[Name], Field(max_length=MAX_TAGS, fail_fast=True)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable_json)]
JsonArray = Annotated[list[Any], AfterValidator(_storable_json)]
