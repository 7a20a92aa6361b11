"""Probes of a bake: does the new version store and return traces, as the database and the other fleet see it?

Both fleets get the same requests at the same time. So a failure counts only where the other fleet succeeded and the
database answered; anything else is unknown. Requests have short limits, and a thread that hangs all the same is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from observatory.delivery.environment import PROBE_SECONDS, ProbeFailure, ProbeResult
from observatory.documents.rollout import other
from observatory.platforms.place import FLEET_HEADER, Place
from observatory.platforms.probe_requests import REQUEST_SECONDS, Exchange
from observatory.settings import FleetName

if TYPE_CHECKING:
    from observatory.database.verification_rows import MarkedRows

DATABASE_MILLISECONDS = "900"  # of one statement
CONNECT_SECONDS = 2  # libpq's least
CLEAN_SECONDS = 90.0  # in which probes also remove what others have left: longer than the rows of a probe are in use
QUICK_SECONDS = 0.5  # of the other fleet's slowest answer; if it is slower, a missing answer proves nothing


@dataclass(kw_only=True)
class FleetProbes:
    """The probes of one stack.

    Attributes:
        preview_url: the listener where a header chooses the fleet.
        database: returns a connection string of the role that owns the tables.
        instance_url: returns the base URL of an instance; None where no instance has its own.
    """

    preview_url: str
    database: Callable[[], str] = field(repr=False)
    instance_url: Callable[[FleetName, str], str] | None = None
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _clean_until: float = field(default_factory=lambda: time.monotonic() + CLEAN_SECONDS, init=False, repr=False)

    def probe(self, fleet: FleetName, instances: Collection[str] | None = None, *, version: str) -> ProbeResult:
        """Probe a fleet, or these of its instances; never raises and returns within `PROBE_SECONDS`."""
        if self._thread and self._thread.is_alive():
            return ProbeResult(unknown="the database or a fleet has not answered the last probe yet")
        done: list[ProbeResult] = []
        self._thread = threading.Thread(
            target=lambda: done.append(self._probe(self._places(fleet, instances), self._fleet(other(fleet)), version)),
            daemon=True,
        )
        self._thread.start()
        self._thread.join(PROBE_SECONDS)
        result = done[0] if done else ProbeResult(unknown=f"the probe did not end within {PROBE_SECONDS} s")
        if result.unknown:  # the next probes remove the rows that this one may have left
            self._clean_until = time.monotonic() + CLEAN_SECONDS
        return result

    def _places(self, fleet: FleetName, instances: Collection[str] | None) -> list[Place]:
        if instances is None or self.instance_url is None:
            return [self._fleet(fleet)]
        return [Place(name=name, url=self.instance_url(fleet, name)) for name in instances]

    def _fleet(self, fleet: FleetName) -> Place:
        return Place(name=fleet, url=self.preview_url, headers={FLEET_HEADER: fleet})

    def _probe(self, places: list[Place], control: Place, version: str) -> ProbeResult:
        import psycopg  # noqa: PLC0415 - only where it is used
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415

        from observatory.database import DatabaseError, connect  # noqa: PLC0415
        from observatory.database.verification_rows import PROBE_MARK, marked_rows  # noqa: PLC0415

        settings = {"statement_timeout": DATABASE_MILLISECONDS, "lock_timeout": DATABASE_MILLISECONDS}
        try:
            conninfo = make_conninfo(self.database(), connect_timeout=CONNECT_SECONDS)
            with (
                connect(conninfo, purpose="probe", settings=settings) as owner,
                marked_rows(owner, mark=PROBE_MARK, clean=time.monotonic() < self._clean_until) as rows,
            ):
                # Without such URLs, as on AWS, the gates count probes as requests of users: more of them hide others.
                return _compare(places, control, rows, version, many=self.instance_url is not None)
        except (DatabaseError, psycopg.Error) as error:
            return ProbeResult(unknown=f"the database does not answer the probe: {error}")
        except Exception as error:
            return ProbeResult(unknown=f"the probe failed: {type(error).__name__}: {error}")


def _compare(places: list[Place], control: Place, rows: MarkedRows, version: str, *, many: bool) -> ProbeResult:
    """Send the same requests to the new version and to the other fleet at the same time, and compare the results."""
    key = rows.add_key("read", "write")
    with ExitStack() as stack:

        def exchange(place: Place) -> Exchange:
            client = stack.enter_context(place.client(key, timeout=REQUEST_SECONDS))
            return Exchange(place=place, client=client, rows=rows, trace_id=f"{rows.run}.{place.name}")

        new, old = [exchange(place) for place in places], exchange(control)
        beside = _Beside(old.write_and_read)
        for each in new:
            each.write_and_read()
        if not beside.join():
            old.hangs()
        for each in new:
            each.check(each.random_key_refused)
            if not old.failures:
                each.check(partial(each.reads_what_is_of, old))
                each.check(partial(_shared, each, old))
        if not old.failures and old.add_spans():
            for each in new:  # which may have kept what it has read before
                each.check(partial(each.reads_what_is_of, old))
        for each in new if many else ():
            each.check(each.loses_nothing)
        return _judge(new, old, version)


def _shared(new: Exchange, old: Exchange) -> ProbeFailure | None:
    """Read through the other fleet what the new version has stored; only a missing trace is the new version's fault."""
    failure = old.reads_what_is_of(new)
    return failure if failure and failure.kind == "not shared" else None


class _Beside:
    """A function that runs in a thread meanwhile, which is left where it does not end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def join(self) -> bool:
        """Wait for the end, at most as long as one request takes; return whether it came, raise what was raised."""
        self._thread.join(REQUEST_SECONDS)
        if self._failed:
            raise self._failed[0]
        return not self._thread.is_alive()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failed.append(error)


def _judge(new: Sequence[Exchange], old: Exchange, version: str) -> ProbeResult:
    """Return the failures that nothing but the new version explains, or why there is no result."""
    if others := {found for each in new for found in each.versions} - {version}:
        return ProbeResult(unknown=f"{', '.join(sorted(others))} answered instead of {version}")
    attempts, failures = sum(len(each.checks) for each in new), [failure for each in new for failure in each.failures]
    if old.failures:
        cause = f"{old.place.name} does not run" if old.absent else f"also {old.failures[0].reason}"
        failures, dropped = [each for each in failures if each.certain], failures
    elif not old.listed:  # it may not have come to the request that failed
        cause = f"{old.place.name} did not end the same requests in time"
        failures, dropped = [each for each in failures if each.certain], failures
    elif old.slowest > QUICK_SECONDS:
        cause = f"{old.place.name} took {old.slowest:.1f} s"
        failures, dropped = [each for each in failures if each.kind != "unanswered"], failures
    else:
        cause, dropped = "", failures
    if dropped and not failures:
        return ProbeResult(unknown=f"{dropped[0].reason}; but {cause}")
    requests = sum(each.requests for each in new)
    return ProbeResult(attempts=attempts, failures=tuple(failures), requests=requests)
