"""Parsing of a request's body into valid items, or into a list of field errors.

A client can send megabytes of invalid data, so the work on an invalid body is limited: the body is first divided into
the text of each item, which makes no other objects; validation stops after a few errors, and an item with more fields
than its model is rejected without validation.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from .decoding import ItemDecoder
from .fields import MAX_NAME, MAX_TEXT, Timestamp, text_limit
from .problems import MAX_ERRORS, ContentTooLarge, FieldError, InvalidRequest
from .structure import MAX_DIGITS, NodeCounter, has_long_number

MAX_ITEMS = 1000
MAX_ITEM_NODES = 50_000
"""Values in one item, whose parsing cannot be divided into steps."""
MAX_LENIENT_BYTES = 64 * 1024
"""A body of this size, which is not JSON because it has NaN or Infinity, is parsed nevertheless to name the field."""
MAX_DEPTH = 200
"""Objects and lists inside each other, in one item: the parser's limit."""
MAX_ITEM_ERRORS = 3
"""Errors of one item when each item has its own result."""
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
        number: number of items, valid or not.
        items: the valid items so far.
        errors: the errors of the others.
    """

    def __init__(
        self, body: bytes, model: type[Item], window: Window, *, max_text_bytes: int = MAX_TEXT, partial: bool = False
    ) -> None:
        """Divide the JSON body of a write, `{"items": [...]}`, into its items.

        With `partial`, invalid items do not prevent the valid ones from being stored, so parsing goes on after errors.

        Raises:
            InvalidRequest: the body is not JSON or has another form.
            ContentTooLarge: the body has more than `MAX_ITEMS` items.
        """
        self._entries = _entries(body)
        self._model = model
        self._window = window
        self._context = text_limit(max_text_bytes)
        self._max_text_bytes = max_text_bytes
        self._decoder = _decoder(model)
        self._partial = partial
        self.number = len(self._entries)
        self.items: list[Item] = []
        self.errors: list[FieldError] = []

    def steps(self) -> Iterator[None]:
        """Parse item by item; stops after a few errors, unless the batch may be stored in part."""
        for index, entry in enumerate(self._entries):
            try:
                self.items.append(self._parse(index, entry))
            except InvalidRequest as invalid:
                self.errors += invalid.errors[: MAX_ITEM_ERRORS if self._partial else None]
                if len(self.errors) >= MAX_ERRORS and not self._partial:
                    return
            yield

    def accepted(self) -> list[Item]:
        """Return the items to store.

        Raises:
            InvalidRequest: an item is invalid, and the batch may not be stored in part; names the items and fields.
        """
        if self.errors and not self._partial:
            raise InvalidRequest(self.errors)
        return self.items

    def results(self) -> list[list[FieldError]]:
        """Return the errors of each item, in the order of the request; a valid item has none."""
        results: list[list[FieldError]] = [[] for _ in range(self.number)]
        for error in self.errors:
            results[error.item or 0].append(error)
        return results

    def _parse(self, index: int, entry: Any) -> Item:
        item: Item | None = None
        if isinstance(entry, msgspec.Raw):
            entry = bytes(entry)
            if len(entry) <= MAX_ITEM_NODES:
                item = self._decoder.decode(entry, max_text_bytes=self._max_text_bytes)
        if item is None:
            item = self._validated(index, entry)
        if rejection := self._window.rejection(item.ts):
            raise InvalidRequest([FieldError(item=index, field="ts", reason=rejection)])
        return item

    def _validated(self, index: int, entry: Any) -> Item:
        fields = _fields(index, entry)
        known = len(self._model.model_fields)
        if isinstance(fields, dict) and len(fields) > known:
            reason = f"has {len(fields)} fields, at most {known} are allowed"
            raise InvalidRequest([FieldError(item=index, field="item", reason=reason)])
        try:
            return self._model.model_validate(fields, context=self._context)
        except ValidationError as error:
            raise InvalidRequest(list(field_errors(error, item=index))) from None


@functools.cache
def _decoder(model: type[BaseModel]) -> ItemDecoder:
    return ItemDecoder(model)


def _too_costly(entry: bytes) -> str | None:
    """Return why the text of a large item must not be parsed; None if it may be."""
    counter = NodeCounter()
    counter.feed(entry)
    if counter.nodes > MAX_ITEM_NODES:
        return f"has more than {MAX_ITEM_NODES} values in objects and lists"
    return f"has a number of more than {MAX_DIGITS} digits" if has_long_number(entry) else None


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
        # Not JSON, but common: the field that has the value is named. This parses the whole body in one step.
        if len(body) > MAX_LENIENT_BYTES or not any(constant in body for constant in (b"NaN", b"Infinity")):
            raise
        return msgspec.convert(from_json(body), _Lenient).items


class _Lenient(msgspec.Struct):
    items: list[Any]


def _fields(index: int, entry: Any) -> Any:
    """Return the content of an item, whose type is not known yet."""
    if not isinstance(entry, bytes):
        return entry
    if len(entry) > MAX_ITEM_NODES and (reason := _too_costly(entry)):
        raise InvalidRequest([FieldError(item=index, field="item", reason=reason)])
    try:
        return from_json(entry)
    except ValueError as error:
        raise InvalidRequest([FieldError(item=index, field="item", reason=f"is not JSON: {error}")]) from None


def field_errors(error: ValidationError, *, item: int | None = None) -> Iterator[FieldError]:
    """Convert pydantic's errors to field errors."""
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in detail["loc"]) or "item"
        # An unknown field has the name that the client chose, which may have megabytes.
        shown = field if len(field) <= MAX_NAME else f"{field[:MAX_NAME]}…"
        yield FieldError(item=item, field=shown, reason=_reason(detail))


def _reason(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    return _REASONS.get(detail["type"]) or re.sub("^(Input|String|List) should", "must", message)
