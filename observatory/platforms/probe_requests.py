"""The requests of a probe to one fleet or instance, and what each answer proves."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import ProbeFailure, ProbeKind
from observatory.platforms.marked_items import compared, random_key, spans, texts_of
from observatory.platforms.place import VERSION_HEADER, Place

if TYPE_CHECKING:
    import httpx

    from observatory.database.verification_rows import MarkedRows

REQUEST_SECONDS = 1.0
WORK_SECONDS = 1.4  # after which no request starts
WRITES, SPANS = 4, 5  # of a trace, each with so many spans
MORE = 40  # further writes of one span, and reads: a version that is wrong for few of them meets a probe soon
# Spans of one read. With a limit a read goes past the cache that the fleets share, which has whole traces only: where
# one fleet cannot reach it for a moment, the other one reads an outdated trace from it for some seconds.
LIMIT = 999
LISTED = 100  # of the newest traces with the mark: those of one probe, and of few others


@dataclass(kw_only=True)
class Exchange:
    """The requests to one place, with the result of each check: a failure, or None.

    Attributes:
        place: where they go.
        client: for it.
        rows: of the run.
        trace_id: of the spans that are written there.
        texts: of the spans that were sent so far, by their ids.
        until: monotonic time after which no request starts.
        checks: the results so far.
        stored: whether the database has the trace.
        listed: whether the trace was written and read in all parts, and listed, before the time was over.
        absent: whether nothing answered for the place: no instance of the fleet runs.
        slowest: seconds of the slowest answer.
        versions: that answered.
        requests: that were sent.
    """

    place: Place
    client: httpx.Client
    rows: MarkedRows
    trace_id: str
    until: float = field(default_factory=lambda: time.monotonic() + WORK_SECONDS)
    texts: dict[str, str] = field(default_factory=dict)
    checks: list[ProbeFailure | None] = field(default_factory=list)
    stored: bool = False
    listed: bool = False
    absent: bool = False
    slowest: float = 0.0
    versions: set[str] = field(default_factory=set)
    requests: int = 0

    @property
    def failures(self) -> tuple[ProbeFailure, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check)

    def write_and_read(self) -> None:
        """Write a trace in parts; after each, compare it with the database and read it, and list it at the end.

        Raises:
            psycopg.Error: the database does not answer.
        """
        for _ in range(WRITES):
            if not self.add_spans():
                return
            self.check(lambda: self._read(self.trace_id, self.texts))
        self.listed = self.check(self._list)

    def add_spans(self) -> bool:
        """Write further spans of the trace, and compare it with the database; return whether it has all of them.

        Raises:
            psycopg.Error: the database does not answer.
        """
        sent = self._further(SPANS)
        written = self.check(lambda: self._write(sent))
        if written:
            self.stored = self.check(self._stored)
        return written and self.stored

    def loses_nothing(self) -> ProbeFailure | None:
        """Write and read many times, and find only what the database contradicts: the other fleet does not do the same.

        After a failure nothing is proven: a write without an answer may be stored later.

        Raises:
            psycopg.Error: the database does not answer.
        """
        if self.failures:
            return None
        half = (time.monotonic() + self.until) / 2  # of the time that is left is for the reads
        for _ in range(MORE):
            if time.monotonic() > half or self._write(self._further(1)):
                break
        if failure := self._lost():
            return failure
        reads = (self._read(self.trace_id, self.texts) for _ in range(MORE) if time.monotonic() < self.until)
        return next((found for found in reads if found and found.certain), None)

    def random_key_refused(self) -> ProbeFailure | None:
        """Read with a key that does not exist."""
        answer = self._send("GET", f"/v1/traces/{self.trace_id}", headers={"Authorization": f"Bearer {random_key()}"})
        if isinstance(answer, ProbeFailure):
            return answer
        if answer.is_success:
            return self._failure("key accepted", f"answered {answer.status_code} to a random key, expected 401")
        return None if answer.status_code == HTTPStatus.UNAUTHORIZED else self._wrong_status(answer)

    def reads_what_is_of(self, written: Exchange) -> ProbeFailure | None:
        """Read the trace that was written at another place, if it is stored."""
        if not written.stored:
            return None
        failure = self._read(written.trace_id, written.texts)
        if failure is None or failure.kind != "not returned":
            return failure
        return ProbeFailure(kind="not shared", reason=f"{failure.reason}; it was written through {written.place.name}")

    def hangs(self) -> None:
        """Keep that an answer did not end in time, and send nothing more."""
        self.until = 0.0
        self.checks.append(self._failure("unanswered", "an answer did not end"))

    def check(self, attempt: Callable[[], ProbeFailure | None]) -> bool:
        """Make an attempt, unless the time is over, and keep its result; return whether it succeeded."""
        if time.monotonic() > self.until:
            return False
        self.checks.append(attempt())
        return self.checks[-1] is None

    def _further(self, count: int) -> dict[str, str]:
        return {f"span-{len(self.texts) + number}": secrets.token_hex(8) for number in range(count)}

    def _write(self, texts: Mapping[str, str]) -> ProbeFailure | None:
        rows = self.rows
        items = spans(mark=rows.mark, run=rows.run, trace_id=self.trace_id, now=rows.now, texts=texts)
        answer = self._send("POST", "/v1/traces", json={"items": items})
        if isinstance(answer, ProbeFailure):
            return answer
        if answer.status_code != HTTPStatus.CREATED:
            return self._wrong_status(answer)
        self.texts |= texts  # which the database must have from now on
        return None

    def _stored(self) -> ProbeFailure | None:
        if (found := self.rows.spans(self.trace_id)) == self.texts:
            return None
        sent = f"{len(self.texts)} spans were sent and answered 201"
        return self._failure("not stored", f"{sent}, and the database has {compared(self.texts, found)}")

    def _lost(self) -> ProbeFailure | None:
        """Find spans that were answered 201 and are not stored; one without an answer may be stored or not."""
        found = self.rows.spans(self.trace_id)
        missing = len(self.texts.items() - found.items())
        sent = f"{len(self.texts)} spans were sent and answered 201"
        return self._failure("not stored", f"{sent}, and the database lacks {missing}") if missing else None

    def _read(self, trace_id: str, texts: Mapping[str, str]) -> ProbeFailure | None:
        """Read a trace that the database has."""
        answer = self._send("GET", f"/v1/traces/{trace_id}", params={"limit": LIMIT})
        if isinstance(answer, ProbeFailure):
            return answer
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return self._failure("not returned", "answered 404 for a trace that the database has")
        if answer.status_code != HTTPStatus.OK:
            return self._wrong_status(answer)
        same = len(texts_of(answer, trace_id).items() & texts.items())
        return None if same == len(texts) else self._incomplete(answer, same, len(texts))

    def _list(self) -> ProbeFailure | None:
        answer = self._send("GET", "/v1/traces", params={"provider": self.rows.mark, "limit": LISTED})
        if isinstance(answer, ProbeFailure):
            return answer
        if answer.status_code != HTTPStatus.OK:
            return self._wrong_status(answer)
        same = len(texts_of(answer, self.trace_id).items() & self.texts.items())
        return None if same == len(self.texts) else self._incomplete(answer, same, len(self.texts))

    def _incomplete(self, answer: httpx.Response, same: int, stored: int) -> ProbeFailure:
        what = f"GET {answer.request.url.path} answered 200 with {same} of {stored} spans that the database has"
        return self._failure("not returned", what)

    def _wrong_status(self, answer: httpx.Response) -> ProbeFailure:
        what = f"{answer.request.method} {answer.request.url.path} answered {answer.status_code} to a valid request"
        return self._failure("error" if answer.is_server_error else "refused", what)

    def _failure(self, kind: ProbeKind, what: str) -> ProbeFailure:
        return ProbeFailure(kind=kind, reason=f"{self.place.name}: {what}")

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response | ProbeFailure:
        """Return the answer, or that there is none."""
        import httpx  # noqa: PLC0415 - only where it is used

        started = time.monotonic()
        self.requests += 1
        try:
            answer = self.client.request(method, path, **more)
        except httpx.HTTPError as error:
            self.absent = self.absent or isinstance(error, httpx.ConnectError)
            return self._failure("unanswered", f"{method} {path} was not answered: {type(error).__name__}")
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)
        version = answer.headers.get(VERSION_HEADER)
        if version is None and answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            self.absent = True  # the balancer's own answer
        elif version:
            self.versions.add(version)
        return answer
