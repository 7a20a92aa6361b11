"""Parsing of a request's body into valid items, or into a list of field errors.

A client can send megabytes of invalid data, so the work on an invalid body is limited: the body is first divided into
the text of each item, which makes no other objects; validation stops after a few errors, and an item with more fields
than its model is rejected without validation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from .fields import Timestamp
from .problems import MAX_ERRORS, ContentTooLarge, FieldError, InvalidRequest

MAX_ITEMS = 1000
MAX_DEPTH = 200
"""Objects and lists inside each other, in one item: the parser's limit."""
_REASONS = {"missing": "is required", "extra_forbidden": "is not a known field", "model_type": "must be an object"}

Item = TypeVar("Item", bound="TimedItem")


class TimedItem(BaseModel):
    """The base of all items: strict, without unknown fields, with a time.

    Attributes:
        ts: time of the event, or the start of a span.
    """

    # Strict: a number in quotes or a flag written as 1 is an error of the client; it is reported, not converted.
    model_config = ConfigDict(strict=True, extra="forbid", json_schema_serialization_defaults_required=True)

    ts: Timestamp


@dataclass(frozen=True, kw_only=True)
class Window:
    """The accepted times. Each day has its own chunk: without limits, one wrong clock could create thousands."""

    earliest: datetime
    latest: datetime

    def rejection(self, ts: datetime) -> str | None:
        """Return why a time is not accepted; None if it is."""
        if ts < self.earliest:
            return f"is older than the retention period: must be {self.earliest.isoformat(timespec='seconds')} or later"
        if ts > self.latest:
            return f"is in the future: must be {self.latest.isoformat(timespec='seconds')} or earlier"
        return None


class Batch(Generic[Item]):
    """The items of a request. Parsing them is divided into steps, one for each item.

    Attributes:
        items: the valid items so far.
        errors: the errors of the others.
    """

    def __init__(self, body: bytes, model: type[Item], window: Window) -> None:
        """Divide the JSON body of a write, `{"items": [...]}`, into its items.

        Raises:
            InvalidRequest: the body is not JSON or has another form.
            ContentTooLarge: the body has more than `MAX_ITEMS` items.
        """
        self._entries = _entries(body)
        self._model = model
        self._window = window
        self.items: list[Item] = []
        self.errors: list[FieldError] = []

    def steps(self) -> Iterator[None]:
        """Parse item by item; stops after a few errors."""
        for index, entry in enumerate(self._entries):
            try:
                self.items.append(_parse(index, entry, self._model, self._window))
            except InvalidRequest as invalid:
                self.errors += invalid.errors
                if len(self.errors) >= MAX_ERRORS:
                    return
            yield

    def accepted(self) -> list[Item]:
        """Return the items.

        Raises:
            InvalidRequest: an item is invalid; names the items and fields.
        """
        if self.errors:
            raise InvalidRequest(self.errors)
        return self.items


class _Envelope(msgspec.Struct):
    items: list[msgspec.Raw]


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def _entries(body: bytes) -> Sequence[msgspec.Raw | Any]:
    try:
        entries = _divided(body)
    except msgspec.ValidationError:
        raise InvalidRequest([FieldError(field="items", reason='the body must be {"items": [...]}')]) from None
    except RecursionError:
        raise InvalidRequest([FieldError(field="body", reason="is nested too deeply")]) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest([FieldError(field="body", reason=f"is not JSON: {error}")]) from None
    if len(entries) > MAX_ITEMS:
        raise ContentTooLarge(
            f"the body has {len(entries)} items, at most {MAX_ITEMS} are allowed; send them in several requests"
        )
    return entries


def _divided(body: bytes) -> Sequence[msgspec.Raw | Any]:
    try:
        return _ENVELOPE.decode(body).items
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Not JSON, but common: the field that has the value is named.
        if not any(constant in body for constant in (b"NaN", b"Infinity")):
            raise
        return msgspec.convert(from_json(body), _Lenient).items


class _Lenient(msgspec.Struct):
    items: list[Any]


def _parse(index: int, entry: Any, model: type[Item], window: Window) -> Item:
    try:
        fields = from_json(bytes(entry)) if isinstance(entry, msgspec.Raw) else entry
    except ValueError as error:
        raise InvalidRequest([FieldError(item=index, field="item", reason=f"is not JSON: {error}")]) from None
    if isinstance(fields, dict) and len(fields) > len(model.model_fields):
        reason = f"has {len(fields)} fields, at most {len(model.model_fields)} are allowed"
        raise InvalidRequest([FieldError(item=index, field="item", reason=reason)])
    try:
        item = model.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(list(field_errors(error, item=index))) from None
    if rejection := window.rejection(item.ts):
        raise InvalidRequest([FieldError(item=index, field="ts", reason=rejection)])
    return item


def field_errors(error: ValidationError, *, item: int | None = None) -> Iterator[FieldError]:
    """Convert pydantic's errors to field errors."""
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in detail["loc"]) or "item"
        yield FieldError(item=item, field=field, reason=_reason(detail))


def _reason(detail: ErrorDetails) -> str:
    return _REASONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
