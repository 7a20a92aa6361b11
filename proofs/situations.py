"""Good situations: a good version is deployed while something else goes wrong, and must not be rolled back."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg

from benchmarks.faults import kill, pid_of, stopped
from observatory.database import connect
from observatory.database.connection import with_database
from proofs.judged import UNJUDGED, Judged, Judgement, on_stacks
from proofs.kept import Kept
from proofs.record import Outcome
from proofs.table import write_table
from proofs.users import Habits
from tests.support.crash import postmasters

PROMISE = "A good version is not rolled back because of its users, a dependency, the monitoring or the machine."
BAKE_S = 25
QUIET_AFTER_S = 35  # of the users' first request: in the bake
COLUMNS = ("situation", "strategy", "result", "whole command", "requests of users hurt since the shift")
FAILING_WRITES = """
CREATE FUNCTION public.fail_sometimes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF random() < 0.15 THEN RAISE EXCEPTION 'both fleets are ill'; END IF; RETURN NULL; END $$;
CREATE TRIGGER fail_sometimes BEFORE INSERT ON public.llm_logs FOR EACH STATEMENT
    EXECUTE FUNCTION public.fail_sometimes();
"""
HEALED = "DROP TRIGGER fail_sometimes ON public.llm_logs; DROP FUNCTION public.fail_sometimes();"
During = Callable[[Judged, float], None]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What happens while a good version is deployed.

    Attributes:
        name: in the words of a report.
        strategy: of the deployment.
        habits: of the users; None if there are none.
        fault: of the version, which is not one that a gate may act on.
        during: happens after the start of the command; gets the stack and the time of the start.
        around: holds from before the command to its end.
    """

    name: str
    strategy: str = "blue-green"
    habits: Habits | None = field(default_factory=Habits)
    fault: str = "good"
    during: During | None = None
    around: Callable[[Judged], contextlib.AbstractContextManager[Any]] = lambda _stack: contextlib.nullcontext()


def killed(daemon: str, *, events: tuple[str, ...] = ("shift",), after_s: float = 5.0) -> During:
    """Return what kills a daemon after each of some events of the deployment; its supervisor restarts it."""

    def during(stack: Judged, begun: float) -> None:
        for event in events:
            if stack.wait_for(event, begun):
                time.sleep(after_s)
                kill(pid_of(stack.sandbox, daemon))()

    return during


def halted(daemon: str, seconds: float, *, event: str = "shift") -> During:
    """Return what stops a daemon for some seconds after an event of the deployment."""

    def during(stack: Judged, begun: float) -> None:
        if stack.wait_for(event, begun):
            time.sleep(5)
            with stopped(stack.sandbox, daemon):
                time.sleep(seconds)

    return during


def restarted_database(event: str) -> During:
    """Return what kills PostgreSQL after an event; Patroni starts it again."""

    def during(stack: Judged, begun: float) -> None:
        if stack.wait_for(event, begun):
            time.sleep(1)
            (postmaster,) = postmasters(stack.checkout)
            os.kill(postmaster, signal.SIGKILL)

    return during


def busy_machine(stack: Judged, begun: float) -> None:
    """Use every core for some seconds."""
    if stack.wait_for("shift", begun):
        burning = [multiprocessing.Process(target=_burn) for _ in range(2 * (os.cpu_count() or 1))]
        for each in burning:
            each.start()
        for each in burning:
            each.join()


def _burn() -> None:
    until = time.monotonic() + 8
    while time.monotonic() < until:
        pass


def frozen_command(stack: Judged, begun: float) -> None:
    """Stop the command that deploys for 20 s, as a laptop that sleeps does."""
    if stack.wait_for("gate", begun):
        commands = [each for each in map(psutil.Process, stack.checkout.processes()) if "deploy" in each.cmdline()]
        for each in commands:
            each.send_signal(signal.SIGSTOP)
        time.sleep(20)
        for each in commands:
            each.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def slow_database(stack: Judged, *, held_s: float = 0.7, free_s: float = 0.8) -> Iterator[None]:
    """Lock the table of the traces again and again: reads and writes of both fleets wait."""
    process = multiprocessing.get_context("spawn").Process(target=_lock, args=(_conninfo(stack), held_s, free_s))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _lock(conninfo: str, held_s: float, free_s: float) -> None:
    with psycopg.connect(conninfo) as connection:
        while True:
            connection.execute("LOCK TABLE public.llm_traces IN ACCESS EXCLUSIVE MODE")
            time.sleep(held_s)
            connection.commit()
            time.sleep(free_s)


@contextlib.contextmanager
def failing_writes(stack: Judged) -> Iterator[None]:
    """Let the database refuse every seventh write of logs, of both fleets."""
    with connect(_conninfo(stack), purpose="proof") as connection:
        connection.execute(FAILING_WRITES)
    try:
        yield
    finally:
        with connect(_conninfo(stack), purpose="proof") as connection:
            connection.execute(HEALED)


def _conninfo(stack: Judged) -> str:
    return with_database(stack.checkout.output("admin_database_url"), "observatory")


SITUATIONS = (
    Situation(name="no requests at all", strategy="canary", habits=None),
    Situation(name="one request a second", strategy="canary", habits=Habits(rate=1)),
    Situation(name="steady traffic", strategy="canary"),
    Situation(name="steady traffic, all at once"),
    Situation(
        name="bursts: a second of four times the rate in every eight",
        habits=Habits(rate=30, burst=lambda seconds: 4.0 if seconds % 8 < 1 else 1.0),
    ),
    Situation(
        name="traffic ends in the bake", habits=Habits(burst=lambda seconds: 1.0 if seconds < QUIET_AFTER_S else 0.01)
    ),
    Situation(name="few requests, all uploads slow", habits=Habits(rate=3, slow_uploads=1.0)),
    Situation(name="users give up a twentieth of their requests", habits=Habits(impatient=0.05)),
    Situation(name="a fifth of the requests has a wrong key or reads what is not stored", habits=Habits(mistaken=0.2)),
    Situation(name="one request fails", fault="one-error"),
    Situation(name="the version needs 12 s to start", fault="slow-start"),
    Situation(name="both fleets slow: tables locked half of the time", strategy="canary", around=slow_database),
    Situation(name="both fleets slow, all traffic at once", around=slow_database),
    Situation(name="both fleets ill: 15 % of the log writes fail", strategy="canary", around=failing_writes),
    Situation(name="both fleets ill, all traffic at once", around=failing_writes),
    Situation(name="pgBouncer killed", during=killed("pgbouncer")),
    Situation(name="pgBouncer away for 5 s", during=halted("pgbouncer", 5)),
    Situation(name="PostgreSQL killed during the installation", during=restarted_database("install")),
    Situation(name="PostgreSQL killed in the bake", during=restarted_database("gate")),
    Situation(name="Valkey killed", during=killed("valkey")),
    Situation(name="Valkey away for 10 s", during=halted("valkey", 10)),
    Situation(
        name="Prometheus killed around the installation",
        during=killed("prometheus", events=("install", "shift"), after_s=0.5),
    ),
    Situation(name="Prometheus away for 10 s in the bake", strategy="canary", during=halted("prometheus", 10)),
    Situation(name="HAProxy killed in the bake", during=killed("haproxy")),
    Situation(name="every core busy for 8 s", during=busy_machine),
    Situation(name="the command stopped for 20 s", during=frozen_command),
)


def prove(rounds: int, share: int, kept: Kept) -> Outcome:
    """Deploy a good version in each situation `rounds` times; with `share`, in one of so many."""
    outcome, begun, ends = Outcome(promise=PROMISE), time.monotonic(), Counter[str]()
    situations = SITUATIONS[::share]
    cases = [(f"{each.name} {n}", each) for n in range(rounds) for each in situations]
    seen: dict[str, list[Judgement]] = {}
    for situation, end in on_stacks(cases, met, outcome, kept):
        seen.setdefault(situation.name, []).append(end)
        ends[end.status] += 1
        print(f"{situation.name}: {end}", flush=True)
        if end.status in {"promoted", "paused", UNJUDGED}:
            outcome.passed += 1
        else:
            outcome.failed += 1
            outcome.failures.append(f"{situation.name}: {end.status}: {end.said}")
    outcome.counts = {"commits": kept.commits, "ends": dict(sorted(ends.items())), "situations": len(situations)}
    outcome.seconds = time.monotonic() - begun
    if share == 1:
        rows = [_row(situation, end) for situation in situations for end in seen.get(situation.name, [])]
        write_table("good situations", COLUMNS, rows)
    return outcome


def met(stack: Judged, situation: Situation) -> Judgement:
    """Deploy a good version in one situation."""
    with situation.around(stack):
        return stack.deploy(
            situation.fault, situation.strategy, bake_s=BAKE_S, habits=situation.habits, meanwhile=situation.during
        )


def _row(situation: Situation, end: Judgement) -> tuple[str, ...]:
    hurt = f"{end.hurt} of {end.requests}" if end.requests else ""
    return situation.name, situation.strategy, end.status, f"{end.seconds:.0f} s", hurt
