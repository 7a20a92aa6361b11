"""Further tests of content: the largest write and its pages, and a trace that changes after it was read.

They are for versions for the schema since which the contract requires both.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import HostsError
from observatory.platforms.marked_items import COST, compared, spans
from observatory.platforms.place import Place
from observatory.platforms.smoke import MARK, Expectations, Run

if TYPE_CHECKING:
    import httpx

SINCE_SCHEMA = 8  # `schema_max` of a version; those for earlier schemas have no pages, and keep the first values
LARGEST, PAGE = 1_000, 300
ANSWER_SECONDS = 30.0  # for the largest write, on a busy machine


def check_content(place: Place, run: Run, *, version: str, schema_max: int) -> None:
    """Check the content of one instance.

    Raises:
        UnansweredError: a request was not answered, or by a 5xx or 429.
        HostsError: a check failed.
        psycopg.Error: the database does not answer.
    """
    if schema_max < SINCE_SCHEMA:
        return
    import httpx  # noqa: PLC0415 - only where it is used

    with place.client(run.key, timeout=ANSWER_SECONDS) as client:
        content = _Content(client=client, place=place, run=run, version=version)
        try:
            content.change_a_trace()
            content.write_and_read_the_most()
        except httpx.HTTPError as error:
            content.report_no_answer(error)


@dataclass(kw_only=True)
class _Content(Expectations):
    """The checks of content; each raises HostsError, or httpx.HTTPError without an answer."""

    def write_and_read_the_most(self) -> None:
        """Write as many spans at once as a body may have, and read them at once and in pages."""
        trace_id = f"{self.run.id}.most"
        texts = {f"smoke-{number}": secrets.token_hex(8) for number in range(LARGEST)}
        self._write(spans(mark=MARK, run=self.run.id, trace_id=trace_id, now=self.run.now, texts=texts))
        if self.run.rows and (stored := self.run.rows.spans(trace_id)) != texts:
            self._fail(f"a write of {LARGEST} spans was answered 201, and the database has {compared(texts, stored)}")
        for limit in (LARGEST, PAGE):
            found = Counter(str(each.get("span_id")) for each in self._pages(trace_id, limit))
            if found != Counter(texts.keys()):
                self._fail(
                    f"GET /v1/traces/{{trace_id}} with `limit={limit}` and all cursors returned {found.total()} spans, "
                    f"{len(found.keys() & texts.keys())} of the {LARGEST} that the trace has"
                )

    def change_a_trace(self) -> None:
        """Read a trace before it exists, write a span at its start and at its end, and read after each write."""
        trace_id, text = f"{self.run.id}.changes", self.run.text
        path = f"/v1/traces/{trace_id}"
        self._expect(self.client.get(path), HTTPStatus.NOT_FOUND)
        texts = {"smoke-0": text(), "smoke-1": text()}
        common = spans(mark=MARK, run=self.run.id, trace_id=trace_id, now=self.run.now, texts=texts)
        begun = {**common[0], "status_code": "UNSET", "duration_ms": 0, "attributes": {"number": 1, "text": "ä"}}
        ended = {
            **common[0],
            "output_text": text(),
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "total_cost_usd": COST,
            "tags": ["smoke", "test"],
        }
        self._write_and_compare(path, [begun], [begun])
        self._write_and_compare(path, [ended, common[1]], [{**begun, **ended}, common[1]])

    def _write_and_compare(self, path: str, sent: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
        """Write spans, one of them new, after which the trace has those that are expected."""
        self._write(sent, new=1)
        answer = self.client.get(path)
        self._expect(answer, HTTPStatus.OK)
        found = {str(each.get("span_id")): each for each in self._items(answer)}
        for span in expected:
            self._compare(span, found.get(span["span_id"]))

    def _compare(self, sent: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
        if found is None:
            self._fail("GET /v1/traces/{trace_id} lacks a span that was added after it had been read")
        for name, value in sent.items():
            if not _is_same(name, value, found.get(name)):
                self._fail(
                    f"a span was last sent with {name}={value!r} and answered 201, and GET /v1/traces/{{trace_id}} "
                    f"returns {found.get(name)!r}"
                )

    def _write(self, items: list[dict[str, Any]], *, new: int | None = None) -> None:
        self._expect(self.client.post("/v1/traces", json={"items": items}), HTTPStatus.CREATED)
        self.run.stored += len(items) if new is None else new

    def _pages(self, trace_id: str, limit: int) -> list[dict[str, Any]]:
        """Return the spans of all pages of a trace; a service without pages has all of them in one."""
        found: list[dict[str, Any]] = []
        parameters = {"limit": str(limit)}
        while len(found) <= LARGEST:  # a page may have fewer spans than `limit`, and has one
            answer = self.client.get(f"/v1/traces/{trace_id}", params=parameters)
            self._expect(answer, HTTPStatus.OK)
            page = self._items(answer)
            found += page
            if (cursor := answer.json().get("next")) is None:
                return found
            parameters["cursor"] = str(cursor)
            if not page:
                break
        raise HostsError(f"{self.place.name}: the pages of {LARGEST} spans with `limit={limit}` have no end")

    def _items(self, answer: httpx.Response) -> list[dict[str, Any]]:
        try:
            return [dict(each) for each in answer.json()["items"]]
        except (ValueError, KeyError, TypeError):
            self._fail("GET /v1/traces/{trace_id} answered 200 without a list of spans")


def _is_same(name: str, sent: object, found: object) -> bool:
    """Return whether a field has the value that was sent: times and numbers may be written in another way."""
    if name == "ts":
        with suppress(ValueError):
            return datetime.fromisoformat(str(found)) == datetime.fromisoformat(str(sent))
        return False
    if isinstance(sent, float):
        return isinstance(found, int | float) and abs(found - sent) < COST / 10
    return found == sent
