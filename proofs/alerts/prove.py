"""Every alert with a fault on a running stack: rounds, results, and the table in docs/alerts-proven.md."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue

from monitoring import ALERTS
from observatory.workspace import Workspace
from proofs.alerts.faults import FAULTS, UNPROVEN
from proofs.alerts.monitored import REGISTERED, Monitored
from proofs.alerts.round import Fault, Measured, measure
from proofs.alerts.scaled import note, scale, scaled_durations
from proofs.kept import Kept
from proofs.record import Outcome
from proofs.table import write_table
from tests.support.checkout import SOURCE, Checkout
from tests.support.small_disk import mounted

PROMISE = (
    "On a running stack each alert's fault leads to its page, the commands of its runbook end the fault as they are "
    "written, and the alert is resolved. A critical page comes within `for` + 15 s of the first second at which the "
    "expression is true, and its end within `keep_firing_for` + 30 s."
)
PAGE = SOURCE / "docs/alerts-proven.md"
COLUMNS = (
    "alert",
    "fault",
    "commands of the runbook",
    "true to page",
    "remedy to resolved",
    "false to resolved",
    "scaled",
)
DISK = "2500m"  # of the stack alone, so that a fault can fill it
STACKS = 4  # at once: a round waits far more than it works
POLL_S = 5.0


def prove(rounds: int, share: int, kept: Kept) -> Outcome:
    """Prove each alert `rounds` times; `share` tries one of so many only."""
    outcome, begun = Outcome(promise=PROMISE), time.monotonic()
    cases = [(f"{fault.alert} {number}", fault) for number in range(rounds) for fault in FAULTS][::share]
    measured: list[Measured] = []
    for case, result in _measured(cases, kept):
        print(f"{case}: {result}", flush=True)
        if isinstance(result, Measured):
            measured.append(result)
            outcome.failures += [f"{case}: {late}" for late in result.late]
        else:
            outcome.failures.append(f"{case}: {result}")
        outcome.failed += isinstance(result, str) or bool(result.late)
    outcome.passed = len(cases) - outcome.failed
    outcome.counts = _counts(measured, kept)
    outcome.seconds = time.monotonic() - begun
    if share == 1:
        write_table("alerts", COLUMNS, [_row(fault, measured) for fault in FAULTS], page=PAGE)
        write_table("not proven", ("alert", "why"), sorted(unproven().items()), page=PAGE)
    return outcome


def unproven() -> dict[str, str]:
    """Return why an alert has no fault on a running stack, by alert."""
    proven = {fault.alert for fault in FAULTS}
    return {each.name: UNPROVEN.get(each.name, "no fault is written yet") for each in ALERTS if each.name not in proven}


def _counts(measured: Sequence[Measured], kept: Kept) -> dict[str, object]:
    critical = [each for each in measured if REGISTERED[each.alert].severity == "critical"]
    return {
        "commits": kept.commits,
        "alerts proven": len({each.alert for each in measured}),
        "alerts not proven": unproven(),
        "remedies run": len({each.alert for each in measured if each.commands}),
        "longest from true to page, critical, s": max((each.page_s for each in critical), default=0),
        "longest from false to resolved, critical, s": max((each.ended_s for each in critical), default=0),
    }


def _row(fault: Fault, measured: Sequence[Measured]) -> Sequence[str]:
    """Return the row of a fault, with the longest of its rounds."""
    mine = [each for each in measured if each.alert == fault.alert]
    if not mine:
        return (fault.alert, fault.what, "", "not seen", "", "", note(fault.alert))
    commands = "; ".join(f"`{each}`" for each in mine[-1].commands) or "none"
    longest = [max(getattr(each, name) for each in mine) for name in ("page_s", "resolved_s", "ended_s")]
    return (fault.alert, fault.what, commands, *(f"{each:.0f} s" for each in longest), note(fault.alert))


def _measured(cases: Sequence[tuple[str, Fault]], kept: Kept) -> Iterator[tuple[str, Measured | str]]:
    """Yield what each case measured, or what was wrong, in the order of their ends."""
    waiting: Queue[tuple[str, Fault]] = Queue()
    for case, fault in cases:
        if found := kept.find(case):
            yield case, Measured(**found)
        else:
            waiting.put((case, fault))
    tried_ones: Queue[tuple[str, Measured | str]] = Queue()
    left = waiting.qsize()
    with ThreadPoolExecutor(max_workers=STACKS) as workers, _drained(waiting):
        running = [workers.submit(_try_on_stacks, waiting, tried_ones) for _ in range(min(STACKS, left))]
        while left:
            case, result = _next(tried_ones, running)
            left -= 1
            if isinstance(result, Measured):
                kept.add(case, asdict(result))
            yield case, result


@contextmanager
def _drained(waiting: Queue[tuple[str, Fault]]) -> Iterator[None]:
    """Leave nothing to do at the end of the block, so that an error does not wait for all other cases."""
    try:
        yield
    finally:
        with suppress(Empty):
            while True:
                waiting.get_nowait()


def _next(tried_ones: Queue[tuple[str, Measured | str]], running: Sequence[Future[None]]) -> tuple[str, Measured | str]:
    """Return the next result; raise what has ended a worker."""
    while True:
        try:
            return tried_ones.get(timeout=POLL_S)
        except Empty:
            for each in running:
                if each.done():
                    each.result()


def _try_on_stacks(waiting: Queue[tuple[str, Fault]], tried_ones: Queue[tuple[str, Measured | str]]) -> None:
    """Try the waiting cases; a new stack replaces one that a case has left ill."""
    while not waiting.empty():
        with a_stack() as stack, suppress(Empty):
            while True:
                case, fault = waiting.get_nowait()
                result = tried(stack, fault)
                tried_ones.put((case, result))
                if isinstance(result, str) or not _well(stack):
                    break


def tried(stack: Monitored, fault: Fault) -> Measured | str:
    """Measure a fault; return what was wrong if it was not as promised."""
    registered = REGISTERED[fault.alert]
    durations = {"pending": registered.pending, "keep_firing": registered.keep_firing}
    try:
        return measure(stack, fault, durations | scaled_durations().get(fault.alert, {}))
    except Exception as error:  # whatever it is, the other alerts are still to be seen
        return f"{type(error).__name__}: {error}"[:2000]


def _well(stack: Monitored) -> bool:
    """Return whether the stack is healthy, if need be after an `up`."""
    if stack.checkout.exit_code("status") == 0:
        return True
    return stack.checkout.exit_code("up", "--engine", "embedded") == 0


@contextmanager
def a_stack() -> Iterator[Monitored]:
    """Yield a stack with the scaled rules, on a small disk where this process may mount one."""
    with tempfile.TemporaryDirectory(prefix="observatory-alerts-") as directory:
        root = Path(directory) / "checkout"
        root.mkdir()
        with mounted(root / ".observatory/stacks", DISK):
            checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
            scale(root)
            try:
                checkout.run("up", "--engine", "embedded")
                yield Monitored(checkout)
            finally:
                checkout.kill_all()
