"""Parsing of a request's body into valid items, or into a list of field errors.

A client can send megabytes of invalid data, so the work on an invalid body is limited: validation stops after a few
errors, and an item with more fields than its model is rejected without validation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from .fields import Timestamp
from .problems import MAX_ERRORS, ContentTooLarge, FieldError, InvalidRequest

MAX_ITEMS = 1000
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


def parse_batch(body: bytes, model: type[Item], window: Window) -> list[Item]:
    """Parse and validate the JSON body of a write, `{"items": [...]}`.

    Raises:
        InvalidRequest: the body is not JSON or has invalid values; names the items and fields.
        ContentTooLarge: the body has more than `MAX_ITEMS` items.
    """
    items: list[Item] = []
    errors: list[FieldError] = []
    for index, entry in enumerate(_entries(body)):
        try:
            item = _parse(index, entry, model, window)
        except InvalidRequest as invalid:
            errors += invalid.errors
            if len(errors) >= MAX_ERRORS:
                break
        else:
            items.append(item)
    if errors:
        raise InvalidRequest(errors)
    return items


def _entries(body: bytes) -> list[Any]:
    try:
        document = from_json(body)
    except ValueError as error:
        raise InvalidRequest([FieldError(field="body", reason=f"is not JSON: {error}")]) from None
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        raise InvalidRequest([FieldError(field="items", reason='the body must be {"items": [...]}')])
    entries: list[Any] = document["items"]
    if len(entries) > MAX_ITEMS:
        raise ContentTooLarge(
            f"the body has {len(entries)} items, at most {MAX_ITEMS} are allowed; send them in several requests"
        )
    return entries


def _parse(index: int, entry: Any, model: type[Item], window: Window) -> Item:
    if isinstance(entry, dict) and len(entry) > len(model.model_fields):
        reason = f"has {len(entry)} fields, at most {len(model.model_fields)} are allowed"
        raise InvalidRequest([FieldError(item=index, field="item", reason=reason)])
    try:
        item = model.model_validate(entry)
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
