"""From a request's body to items that can be stored, or to the list of what is wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from .problems import ContentTooLarge, FieldError, InvalidRequest

MAX_ITEMS = 1000
_REASONS = {"missing": "is required", "extra_forbidden": "is not a known field"}

Item = TypeVar("Item", bound=BaseModel)


class Batch(BaseModel, Generic[Item]):
    """Body of a write."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Item], Field(max_length=MAX_ITEMS)]


class Timestamped(Protocol):
    """An item with a time."""

    ts: datetime


@dataclass(frozen=True, kw_only=True)
class Window:
    """The times that are taken in. Each day has a chunk: without bounds one wrong clock would make thousands."""

    earliest: datetime
    latest: datetime

    def errors(self, items: Sequence[Timestamped]) -> Iterator[FieldError]:
        """Yield one error for each item that lies outside."""
        for index, item in enumerate(items):
            if item.ts < self.earliest:
                reason = f"is older than the retention, which begins at {self.earliest.isoformat(timespec='seconds')}"
                yield FieldError(item=index, field="ts", reason=reason)
            elif item.ts > self.latest:
                reason = f"lies in the future: must be {self.latest.isoformat(timespec='seconds')} or earlier"
                yield FieldError(item=index, field="ts", reason=reason)


def parse_batch(body: bytes, batch: type[Batch[Item]]) -> list[Item]:
    """Parse and check the JSON of a write.

    Raises:
        InvalidRequest: it is not JSON or not of the expected form; names items and fields.
        ContentTooLarge: there are more than `MAX_ITEMS` items.
    """
    try:
        return batch.model_validate_json(body).items
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
    if any(detail["type"] == "too_long" and detail["loc"] == ("items",) for detail in details):
        raise ContentTooLarge(f"more than {MAX_ITEMS} items: send them in several requests; nothing was stored")
    raise InvalidRequest([field_error(detail) for detail in details])


def field_error(detail: ErrorDetails) -> FieldError:
    """Translate pydantic's error into ours."""
    reason = _REASONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    location = detail["loc"]
    if len(location) > 1 and location[0] == "items" and isinstance(location[1], int):
        return FieldError(item=location[1], field=_dotted(location[2:]) or "item", reason=reason)
    return FieldError(field=_dotted(location) or "body", reason=reason)


def _dotted(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location)
