"""From a request's body to items that can be stored, or to the list of what is wrong with them.

A body has megabytes of the client's choosing, so the work on a wrong one is bounded too: checking ends after a few
faults, and an item with more fields than there are is not looked at.
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
    """What is common to all items: strict, nothing unknown in it, and a time.

    Attributes:
        ts: when it happened or began.
    """

    # Strict: a number in quotes or a flag written 1 is the sender's mistake, and is better told than guessed at.
    model_config = ConfigDict(strict=True, extra="forbid", json_schema_serialization_defaults_required=True)

    ts: Timestamp


@dataclass(frozen=True, kw_only=True)
class Window:
    """The times that are taken in. Each day has a chunk: without bounds one wrong clock would make thousands."""

    earliest: datetime
    latest: datetime

    def refusal(self, ts: datetime) -> str | None:
        """Say why a time is not taken in; None if it is."""
        if ts < self.earliest:
            return f"is older than the retention, which begins at {self.earliest.isoformat(timespec='seconds')}"
        if ts > self.latest:
            return f"lies in the future: must be {self.latest.isoformat(timespec='seconds')} or earlier"
        return None


def parse_batch(body: bytes, model: type[Item], window: Window) -> list[Item]:
    """Parse and check the JSON of a write, `{"items": [...]}`.

    Raises:
        InvalidRequest: it is not JSON or not of the expected form; names items and fields.
        ContentTooLarge: there are more than `MAX_ITEMS` items.
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
            f"{len(entries)} items: at most {MAX_ITEMS} are taken at once, send several requests; nothing was stored"
        )
    return entries


def _parse(index: int, entry: Any, model: type[Item], window: Window) -> Item:
    if isinstance(entry, dict) and len(entry) > len(model.model_fields):
        reason = f"has {len(entry)} fields, but an item has at most {len(model.model_fields)}"
        raise InvalidRequest([FieldError(item=index, field="item", reason=reason)])
    try:
        item = model.model_validate(entry)
    except ValidationError as error:
        raise InvalidRequest(list(field_errors(error, item=index))) from None
    if refusal := window.refusal(item.ts):
        raise InvalidRequest([FieldError(item=index, field="ts", reason=refusal)])
    return item


def field_errors(error: ValidationError, *, item: int | None = None) -> Iterator[FieldError]:
    """Translate pydantic's errors into ours."""
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in detail["loc"]) or "item"
        yield FieldError(item=item, field=field, reason=_reason(detail))


def _reason(detail: ErrorDetails) -> str:
    return _REASONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
