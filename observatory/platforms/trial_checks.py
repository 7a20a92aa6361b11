"""Further tests of an instance without traffic: many requests at once, memory, its end, and what it logs.

Each is a function of where the instance listens and of how its process is reached, so that it can be used anywhere. The
requests and rows are those of `observatory.platforms.smoke`.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError
from observatory.platforms.exported_metrics import REQUIRED, lacking, samples
from observatory.platforms.instance_process import FILES, MEMORY
from observatory.platforms.live_comparison import UnansweredError, proves_nothing
from observatory.platforms.marked_items import spans
from observatory.platforms.place import Place
from observatory.platforms.smoke import ANSWER_SECONDS, MARK, Run, exercise_first

if TYPE_CHECKING:
    import httpx

    from observatory.database.verification_rows import MarkedRows

BURST = 50  # requests at once
BURST_SECONDS = 30.0  # for the answers to all of them: a busy machine is late, a deadlock never answers
WORKERS = 4  # of the requests that show growth
WARM_UP, COUNTED = 500, 500
COMPARED = 100  # requests to the live fleet, where the version failed some
LEAST_COUNTED = 200  # of a round that a busy machine cuts off
ROUND_SECONDS = 10.0
ROUNDS = 3  # a heap that fills up stops to grow; a leak does not
GROWTH = {MEMORY: 20.0, FILES: 50.0}  # for each 1,000 requests
ARRIVAL_SECONDS = 1.0  # until the first half of a body has arrived for certain
PIECE = 16  # characters of a secret that are found in a log, also where the rest is cut off
BUSY = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(kw_only=True)
class Requests:
    """Small requests of each kind to one instance, in turn, from several threads.

    Attributes:
        place: the instance.
        run: its rows and key.
        written: spans that were answered 201.
        answered: requests that were answered as expected.
        busy: requests that were answered 503 or 429 with the header Retry-After.
        unanswered: requests without an answer, or with a 5xx or another 429, by what happened.
        problems: the other ones, by what happened.
    """

    place: Place
    run: Run
    written: int = 0
    answered: int = 0
    busy: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def send(self, client: httpx.Client, number: int) -> None:
        """Send one request and count its answer."""
        import httpx  # noqa: PLC0415 - only where it is used

        write, expected = number % 2 == 0, (HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NOT_FOUND)
        try:
            answer = self._write(client) if write else self._read(client, absent=number % 4 == 3)  # noqa: PLR2004
        except httpx.HTTPError as error:
            return self._count(f"no answer ({type(error).__name__})", answered=False)
        if answer.status_code in BUSY and "Retry-After" in answer.headers:
            return self._count(None, busy=True)
        right = answer.status_code == expected[number % 4]
        if right:
            return self._count(None, written=write)
        return self._count(f"answered {answer.status_code}", answered=not proves_nothing(answer.status_code))

    def _write(self, client: httpx.Client) -> httpx.Response:
        texts = {"smoke": f"trial {secrets.token_hex(100)}"}
        trace_id = f"{self.run.id}.{secrets.token_hex(8)}"
        items = spans(mark=MARK, run=self.run.id, trace_id=trace_id, now=self.run.now, texts=texts)
        return client.post("/v1/traces", json={"items": items})

    def _read(self, client: httpx.Client, *, absent: bool) -> httpx.Response:
        if absent:
            return client.get(f"/v1/traces/{secrets.token_hex(16)}")
        return client.get("/v1/traces", params={"provider": MARK, "limit": 5})

    def _count(self, problem: str | None, *, busy: bool = False, written: bool = False, answered: bool = True) -> None:
        with self._lock:
            self.written += written
            self.busy += busy
            self.answered += not busy and problem is None
            (self.problems if answered else self.unanswered).update([problem] if problem else [])

    @property
    def failed(self) -> bool:
        """Whether a request was not answered as it should be."""
        return bool(self.problems or self.unanswered)

    def check(self, what: str) -> None:
        """Check that the requests were answered.

        Raises:
            HostsError: one was wrong.
            UnansweredError: one was not answered, or half of them were refused.
        """
        sent = self.answered + self.busy + self.problems.total() + self.unanswered.total()
        if self.failed:
            problem, count = (self.problems or self.unanswered).most_common(1)[0]
            message = f"{self.place.name}: {what}: {count} of {sent} requests: {problem}"
            raise HostsError(message) if self.problems else UnansweredError(message, _send_some)
        if self.busy > self.answered:
            refused = f"{self.place.name}: {what}: {self.busy} of {sent} requests were refused as too many"
            raise UnansweredError(refused, _send_some)


def _send_some(place: Place, rows: MarkedRows) -> None:
    """Send small requests, not at once; raises HostsError where one is not answered as it should be."""
    _send(Requests(place=place, run=Run.with_database(rows)), COMPARED)


def send_burst(place: Place, run: Run) -> None:
    """Send many requests at the same moment; each must be answered.

    Raises:
        HostsError: one was not.
    """
    requests, together = Requests(place=place, run=run), threading.Barrier(BURST)

    def send(client: httpx.Client, number: int) -> None:
        together.wait()
        requests.send(client, number)

    with place.client(run.key, timeout=BURST_SECONDS) as client, ThreadPoolExecutor(BURST) as pool:
        list(pool.map(partial(send, client), range(BURST)))
    requests.check(f"{BURST} requests at once")
    _check_stored(place, run, requests.written)


def check_growth(place: Place, run: Run, usage: Callable[[], Mapping[str, float]]) -> tuple[str, ...]:
    """Send requests until memory and open files of the instance do not grow much any more.

    Args:
        place: the instance.
        run: its rows and key.
        usage: returns what its processes hold, as `instance_process.usage`.

    Returns:
        What was not checked, and why: on a slow machine there are too few requests to see growth.

    Raises:
        HostsError: one of them grew by too much in every round, or a request failed.
    """
    requests = Requests(place=place, run=run)
    _send(requests, WARM_UP)
    leaks = set(GROWTH)
    for _ in range(ROUNDS):
        before = usage()
        sent = _send(requests, COUNTED)
        if sent < LEAST_COUNTED:
            return (f"not checked: growth: only {sent} requests in {ROUND_SECONDS:.0f} s",)
        after = usage()
        grown = {what: (after[what] - before[what]) * 1_000 / sent for what in after.keys() & before.keys()}
        leaks &= {what for what, growth in grown.items() if growth > GROWTH[what]}
        if not leaks:
            _check_stored(place, run, requests.written)
            return ()
    raise HostsError(
        f"{place.name}: it leaks: {ROUNDS} times in succession 1,000 requests took "
        + " and ".join(f"{grown[what]:.0f} {what}, {GROWTH[what]:.0f} are allowed" for what in sorted(leaks))
    )


def _send(requests: Requests, number: int) -> int:
    """Send so many requests, fewer where they take too long; return how many."""
    until = time.monotonic() + ROUND_SECONDS

    def send(client: httpx.Client, index: int) -> bool:
        if time.monotonic() > until or requests.failed:
            return False
        requests.send(client, index)
        return True

    with requests.place.client(requests.run.key, timeout=ANSWER_SECONDS) as client, ThreadPoolExecutor(WORKERS) as pool:
        sent = sum(pool.map(partial(send, client), range(number)))
    requests.check("many small requests")
    return sent


def _check_stored(place: Place, run: Run, written: int) -> None:
    """Check that the database has every span that was answered 201, besides those of the tests before."""
    if run.rows is None:
        return
    if (lost := run.stored + written - run.rows.count("llm_traces")) > 0:
        raise HostsError(f"{place.name}: {lost} of {written} spans that were answered 201 are not in the database")
    run.stored += written


def check_metrics(place: Place, promised: Collection[str]) -> None:
    """Check that an instance exports the metrics that every version has, and those that its manifest promises.

    Raises:
        HostsError: it lacks some; or /metrics does not answer.
    """
    import httpx  # noqa: PLC0415 - only where it is used

    url = f"{place.url}/metrics"
    try:
        answer = httpx.get(url, timeout=ANSWER_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise HostsError(f"{place.name}: GET /metrics got no answer: {type(error).__name__}") from error
    if answer.status_code != HTTPStatus.OK:
        raise HostsError(f"{place.name}: GET /metrics answered {answer.status_code}, expected 200")
    exported = samples(answer.text)
    for names, reason in ((REQUIRED, "every version has"), (promised, "its manifest promises")):
        if missing := lacking(exported, names):
            raise HostsError(f"{place.name}: /metrics has no sample of {', '.join(missing)}, which {reason}")


def end_with_request_in_flight(
    place: Place, run: Run, terminate: Callable[[], None], ended: Callable[[], int | None]
) -> None:
    """Send half of a request, SIGTERM, and the other half; the request must be answered, and the instance must exit.

    Args:
        place: the instance.
        run: its rows and key.
        terminate: sends SIGTERM.
        ended: waits for the end; returns the exit status, None where it was killed because it did not end.

    Raises:
        HostsError: there was no answer, or the exit status is not 0.
    """
    import httpx  # noqa: PLC0415 - only where it is used

    texts = {"smoke": f"trial {secrets.token_hex(16)}"}
    items = spans(mark=MARK, run=run.id, trace_id=f"{run.id}.end", now=run.now, texts=texts)
    body = json.dumps({"items": items}).encode()

    def halves() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        time.sleep(ARRIVAL_SECONDS)
        terminate()
        time.sleep(ARRIVAL_SECONDS)
        yield body[len(body) // 2 :]

    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    try:
        with place.client(run.key, timeout=ANSWER_SECONDS) as client:
            answer = client.post("/v1/traces", content=halves(), headers=headers)
    except httpx.HTTPError as error:
        what = f"{place.name}: a request in flight at SIGTERM got no answer: {type(error).__name__}"
        raise UnansweredError(what, partial(exercise_first, 1)) from error
    if answer.status_code != HTTPStatus.CREATED and answer.status_code not in BUSY:
        what = f"{place.name}: a request in flight at SIGTERM was answered {answer.status_code}, expected 201"
        wrong = proves_nothing(answer.status_code)
        raise UnansweredError(what, partial(exercise_first, 1)) if wrong else HostsError(what)
    if (status := ended()) is None:
        raise HostsError(f"{place.name} ignores SIGTERM, or does not end within STORAGE_DRAIN_SECONDS: it was killed")
    if status != 0:
        raise HostsError(f"{place.name} ended with exit status {status} after SIGTERM, expected 0")


def check_log(place: Place, run: Run, log: bytes) -> None:
    """Check that a log has no key and no prompt of the run, also not a part of one.

    Raises:
        HostsError: it has one.
    """
    for kind, secret in run.private:
        pieces = (secret[start : start + PIECE] for start in range(len(secret) - PIECE + 1))
        if any(piece.encode() in log for piece in pieces):
            raise HostsError(f"{place.name} logs secrets: {kind} of the tests is in its log")
