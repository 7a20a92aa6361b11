"""The smoke suite: what every version must be able to do, tested through its API and compared with the database.

Owns the requests and the expected answers. Does not own where they go. `observatory.database.verification_rows` finds
the rows that this writes by their mark, and removes them. Only where there is no database, answers alone are checked.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from observatory.delivery.environment import HostsError
from observatory.platforms.live_comparison import UnansweredError, proves_nothing
from observatory.platforms.marked_items import (
    COST,
    bad_bodies,
    compared,
    is_json,
    line,
    measurement,
    random_key,
    repeated,
    spans,
    texts_of,
)
from observatory.platforms.place import VERSION_HEADER, Place

if TYPE_CHECKING:
    import httpx

    from observatory.database.verification_rows import MarkedRows, Scope, Table

MARK = "observatory.verification"
SPANS, READS = 10, 20
SCOPES: tuple[Scope, Scope] = ("read", "write")
LISTED = 1000  # of the newest traces with the mark
ANSWER_SECONDS = 10.0
HOURS = 50_000  # one of so many ends of the period of costs is chosen, so that no cache has the page


@dataclass(kw_only=True)
class Run:
    """One run of the suite.

    Attributes:
        id: of the rows that are written.
        key: may read and write.
        rows: the database's view of the rows; None: there is no database, so only answers are checked.
        now: time of the rows.
        stored: number of spans that the database must have.
        private: keys and prompts of the run, each with its kind, which no log may have.
    """

    id: str
    key: str = field(repr=False)
    rows: MarkedRows | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    stored: int = 0
    private: list[tuple[str, str]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.private.append(("the key", self.key.removeprefix("obs_")))

    def text(self) -> str:
        """Return a random prompt."""
        token = secrets.token_hex(16)
        self.private.append(("a prompt", token))
        return f"smoke test {token}"

    def wrong_key(self) -> str:
        """Return a random key."""
        key = random_key()
        self.private.append(("an invalid key", key.removeprefix("obs_")))
        return key

    @classmethod
    def with_database(cls, rows: MarkedRows) -> Run:
        """Return a run with a key of its own, which exists as long as the rows."""
        return cls(id=rows.run, key=rows.add_key("read", "write"), rows=rows, now=rows.now)


def exercise(place: Place, run: Run, *, version: str, beside: Place | None = None) -> tuple[str, ...]:
    """Write, compare with the database, read back in every way, and send what must be refused.

    Args:
        place: what is exercised.
        run: its rows and key.
        version: the version that must answer.
        beside: the other fleet, which must return what was written here; None where it does not run.

    Returns:
        What was not checked, and why.

    Raises:
        UnansweredError: a request was not answered, or by a 5xx or 429.
        HostsError: a check failed.
        psycopg.Error: the database does not answer.
    """
    with place.client(run.key, timeout=ANSWER_SECONDS) as client:
        smoke = _Smoke(client=client, place=place, run=run, version=version)
        smoke.check()
        if beside is None:
            smoke.skipped.append("reads through the other fleet: it does not run")
        else:
            smoke.read_through(beside)
        return tuple(f"not checked: {what}" for what in smoke.skipped)


def exercise_first(number: int, place: Place, rows: MarkedRows) -> None:
    """Make the first checks of the suite with a place, whatever version answers; raises as `exercise`."""
    run = Run.with_database(rows)
    with place.client(run.key, timeout=ANSWER_SECONDS) as client:
        _Smoke(client=client, place=place, run=run, version=None).check(number)


class _Problem(NamedTuple):
    """Why a read failed; `certain` where no ill dependency explains it."""

    text: str
    certain: bool


@dataclass(kw_only=True)
class Expectations:
    """What the answers of one place must be; each method raises HostsError where they are not.

    Attributes:
        client: for the place.
        place: what is exercised.
        run: its rows and key.
        version: that must answer; None is any.
    """

    client: httpx.Client
    place: Place
    run: Run
    version: str | None
    _begun: int = 1  # checks of the suite that the live fleet gets where one is not answered

    def _expect(self, answer: httpx.Response, status: int, what: str = "") -> None:
        request = answer.request
        if answer.status_code != status:
            self._wrong_status(
                answer,
                f"{request.method} {request.url.path}{what} answered {answer.status_code}, expected {status:d}: "
                f"{answer.text[:300]}",
            )
        if answer.is_success and not is_json(answer):
            self._fail(
                f"{request.method} {request.url.path} answered with the content type "
                f"{answer.headers.get('Content-Type', 'of nothing')}, expected application/json"
            )
        self._check_version(answer)

    def _check_version(self, answer: httpx.Response) -> None:
        if self.version and (found := answer.headers.get(VERSION_HEADER)) != self.version:
            raise HostsError(f"{self.place.name} answers as {found}, expected {self.version}")

    def _wrong_status(self, answer: httpx.Response, what: str) -> None:
        fail = self._unanswered if proves_nothing(answer.status_code) else self._fail
        fail(what)

    def report_no_answer(self, error: Exception) -> NoReturn:
        """Raise UnansweredError for a request without an answer."""
        self._unanswered(f"no answer at {self.place.url}: {type(error).__name__}: {error}", error)

    def _unanswered(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise UnansweredError(f"{self.place.name}: {what}", partial(exercise_first, self._begun)) from cause

    def _fail(self, what: str) -> NoReturn:
        raise HostsError(f"{self.place.name}: {what}")


@dataclass(kw_only=True)
class _Smoke(Expectations):
    """The checks of one place; each raises HostsError, or httpx.HTTPError without an answer."""

    traces: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for trace_id, number in ((self.run.id, SPANS), (f"{self.run.id}.2", 1)):
            texts = {f"smoke-{index}": self.run.text() for index in range(number)}
            self.traces[trace_id] = texts

    def check(self, first: int | None = None) -> None:
        """Make all checks, or so many of the first ones; raises HostsError."""
        import httpx  # noqa: PLC0415 - only where it is used

        for number, check in enumerate(self.checks[:first], start=1):
            self._begun = number
            try:
                check()
            except httpx.HTTPError as error:
                self.report_no_answer(error)

    @property
    def checks(self) -> tuple[Callable[[], None], ...]:
        """The checks in their order: the later ones read what the first one wrote."""
        return (
            self.write,
            self.compare_with_database,
            self.read_traces,
            self.list_traces,
            self.read_absent_trace,
            self.send_wrong_keys,
            self.send_keys_without_scope,
            self.send_bad_items,
            self.read_costs,
        )

    def write(self) -> None:
        """Write the traces, a metric and a log line."""
        run = self.run
        items = {
            "traces": self.items,
            "metrics": [measurement(mark=MARK, run=run.id, now=run.now)],
            "logs": [line(mark=MARK, run=run.id, now=run.now, message=run.text())],
        }
        for kind, each in items.items():
            self._expect(self.client.post(f"/v1/{kind}", json={"items": each}), HTTPStatus.CREATED)

    @property
    def items(self) -> list[dict[str, Any]]:
        """The spans of both traces; the first one has a cost."""
        run, found = self.run, []
        for trace_id, texts in self.traces.items():
            found += spans(mark=MARK, run=run.id, trace_id=trace_id, now=run.now, texts=texts)
        return [{**found[0], "total_cost_usd": COST}, *found[1:]]

    def compare_with_database(self) -> None:
        """Check that the database has what was answered 201, no more and no less."""
        if (rows := self.run.rows) is None:
            self.skipped.append("rows in the database, keys with one scope, and costs: there is no database")
            return
        for trace_id, texts in self.traces.items():
            if (found := rows.spans(trace_id)) != texts:
                self._fail(
                    f"{len(texts)} spans of a trace were sent to POST /v1/traces, which answered 201, and the database "
                    f"has {compared(texts, found)}"
                )
        sent: dict[Table, int] = {"llm_traces": sum(map(len, self.traces.values())), "llm_metrics": 1, "llm_logs": 1}
        for table, number in sent.items():
            if (count := rows.count(table)) != number:
                self._fail(f"{number} items were sent and answered 201, and the database has {count} rows in {table}")
        if not _is_close(cost := rows.costs()[2], COST):
            self._fail(f"spans that cost {COST} USD were answered 201, and the database has costs of {cost} USD")
        self.run.stored = sent["llm_traces"]

    def read_traces(self) -> None:
        """Read the traces in turn, often enough to notice answers that are wrong from time to time."""
        wrong: Counter[_Problem] = Counter()
        for number in range(READS):
            trace_id = list(self.traces)[number % len(self.traces)]
            if problem := self._problem_of_read(self.client, trace_id):
                wrong[problem] += 1
        if wrong:
            problem, count = max(wrong.items(), key=lambda found: (found[0].certain, found[1]))
            fail = self._fail if problem.certain else self._unanswered
            fail(f"{count} of {READS} reads of a stored trace with a valid key: {problem.text}")

    def _problem_of_read(self, client: httpx.Client, trace_id: str) -> _Problem | None:
        answer, texts = client.get(f"/v1/traces/{trace_id}"), self.traces[trace_id]
        if answer.status_code != HTTPStatus.OK:
            return _Problem(f"answered {answer.status_code}", not proves_nothing(answer.status_code))
        if again := repeated(answer):
            return _Problem(f"answered 200 with {again} spans more than once", True)
        found = texts_of(answer, trace_id)
        if found == texts:
            return None
        return _Problem(f"answered 200 with {compared(texts, found)}", True)

    def list_traces(self) -> None:
        """Check that lists have the traces, and that filters hold."""
        listed = self._list(provider=MARK, limit=LISTED)
        for trace_id, texts in self.traces.items():
            if (found := len(texts_of(listed, trace_id).items() & texts.items())) != len(texts):
                self._fail(f"GET /v1/traces?provider= listed {found} of {len(texts)} newest spans that are stored")
        if not _items(self._list(limit=2)):
            self._fail("GET /v1/traces listed nothing, although traces are stored")
        if foreign := _items(self._list(provider=MARK, model=secrets.token_hex(8), limit=1)):
            self._fail(
                f"GET /v1/traces?model= listed a span of the model {foreign[0].get('model')}, which was not asked for"
            )

    def _list(self, **parameters: Any) -> httpx.Response:
        answer = self.client.get("/v1/traces", params=parameters)
        self._expect(answer, HTTPStatus.OK)
        return answer

    def read_absent_trace(self) -> None:
        """Check that a trace that is not stored is 404."""
        self._expect(self.client.get(f"/v1/traces/{secrets.token_hex(16)}"), HTTPStatus.NOT_FOUND)

    def send_wrong_keys(self) -> None:
        """Check that a random key and no key are refused, for reads and writes."""
        for headers in ({"Authorization": f"Bearer {self.run.wrong_key()}"}, {"Authorization": ""}):
            key = "a random key" if headers["Authorization"] else "no key"
            for answer in (
                self.client.get(f"/v1/traces/{self.run.id}", headers=headers),
                self.client.get("/v1/traces", params={"limit": 1}, headers=headers),
                self.client.post("/v1/traces", json={"items": self._unwanted}, headers=headers),
            ):
                self._expect(answer, HTTPStatus.UNAUTHORIZED, f" with {key}")
        self._expect_unstored("a wrong key")

    def send_keys_without_scope(self) -> None:
        """Check that a key can do what its scope permits, and nothing else."""
        if (rows := self.run.rows) is None:
            return
        trace = f"/v1/traces/{self.run.id}"
        reader, writer = ({"Authorization": f"Bearer {rows.add_key(scope)}"} for scope in SCOPES)
        self._expect(self.client.get(trace, headers=reader), HTTPStatus.OK, " with a key that may only read")
        answer = self.client.post("/v1/traces", json={"items": self._unwanted}, headers=reader)
        self._expect(answer, HTTPStatus.FORBIDDEN, " with a key that may only read")
        self._expect(self.client.get(trace, headers=writer), HTTPStatus.FORBIDDEN, " with a key that may only write")
        self._expect_unstored("a key that may only read")

    def send_bad_items(self) -> None:
        """Check that invalid requests are 4xx, and that nothing of them is stored."""
        for what, body in bad_bodies(self._unwanted[0], self.run.now):
            answer = self.client.post("/v1/traces", content=body, headers={"Content-Type": "application/json"})
            if not answer.is_client_error:
                self._wrong_status(answer, f"POST /v1/traces with {what} answered {answer.status_code}, expected 400")
            self._check_version(answer)
        self._expect_unstored("an invalid item")

    @property
    def _unwanted(self) -> list[dict[str, Any]]:
        """A span that must not be stored."""
        texts = {"smoke": "not to be stored"}
        return spans(mark=MARK, run=self.run.id, trace_id=f"{self.run.id}.3", now=self.run.now, texts=texts)

    def _expect_unstored(self, what: str) -> None:
        rows = self.run.rows
        if rows and (stored := rows.spans(f"{self.run.id}.3")):
            self._fail(f"{len(stored)} spans of a request with {what} are in the database")

    def read_costs(self) -> None:
        """Compare the costs of the traces with what the database has."""
        rows = self.run.rows
        if rows is None or not rows.has_costs:
            return
        first = self.run.now.replace(minute=0, second=0, microsecond=0)
        period = {"from": first.isoformat(), "to": (first + timedelta(hours=1 + secrets.randbelow(HOURS))).isoformat()}
        answer = self.client.get("/v1/costs", params={**period, "bucket": "total", "group_by": "provider,environment"})
        if answer.status_code == HTTPStatus.BAD_REQUEST and self.client.get("/v1/costs", params=period).is_success:
            self.skipped.append("costs: this version cannot group them")
            return
        self._expect(answer, HTTPStatus.OK)
        names = ("request_count", "total_tokens", "total_cost_usd")
        found = [row for row in _items(answer) if (row.get("provider"), row.get("environment")) == (MARK, self.run.id)]
        stored = dict(zip(names, rows.costs(), strict=True))
        answered = {name: found[0].get(name) for name in names} if found else None
        if answered is None or any(not _is_close(answered[name], stored[name]) for name in names):
            self._fail(f"GET /v1/costs answered {answered}, and the database has {stored}")

    def read_through(self, beside: Place) -> None:
        """Check that the other fleet returns what was written here, if it returns what was written there."""
        import httpx  # noqa: PLC0415 - only where it is used

        try:
            self._read_through(beside)
        except httpx.HTTPError as error:
            self.skipped.append(f"reads through {beside.name}: no answer ({type(error).__name__})")

    def _read_through(self, beside: Place) -> None:
        with beside.client(self.run.key, timeout=ANSWER_SECONDS) as other:
            problem = self._problem_of_read(other, self.run.id)
            if problem is None:
                return
            own = f"{self.run.id}.beside"
            self.traces[own] = {"smoke": self.run.text()}
            items = spans(mark=MARK, run=self.run.id, trace_id=own, now=self.run.now, texts=self.traces[own])
            written = other.post("/v1/traces", json={"items": items}).status_code == HTTPStatus.CREATED
            if written and self._problem_of_read(other, own) is None:
                self._fail(
                    f"{beside.name} {problem.text} for a trace that was written here, and returns its own traces"
                )
            self.skipped.append(f"reads through {beside.name}: it does not return its own traces")


def _items(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the items of a list; none where the answer is something else."""
    try:
        items = answer.json()["items"]
    except (ValueError, KeyError, TypeError):
        return []
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _is_close(answered: object, stored: float) -> bool:
    return isinstance(answered, int | float) and abs(answered - stored) < COST / 10
