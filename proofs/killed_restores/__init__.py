"""Restores are killed at every phase on a real stack: no acknowledged write is lost, and a rerun converges."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from proofs.kept import Kept
from proofs.killed_restores.cases import Case, cases
from proofs.killed_restores.victim import Victim, a_victim
from proofs.record import Outcome

PROMISE = (
    "A restore drill, a rollback of the database, its undo, a rollback to a dump, a flashback (open, compare, restore, "
    "close) and the recovery of a lost machine are killed by SIGKILL at every phase and in its midst: the database is "
    "that of before or that of the record with every write that it acknowledged, the same command or `up` ends what "
    "was begun, and no clone, directory, file or process is left."
)


def prove(rounds: int, share: int, kept: Kept) -> Outcome:
    """Kill at each moment `rounds` times; `share` tries one of so many only."""
    outcome, begun, kills = Outcome(promise=PROMISE), time.monotonic(), Counter[str]()
    drawn = [(f"{each.name}, round {number}", each) for number in range(rounds) for each in cases(number)[::share]]
    seen = 0
    for name, struck, broken in _struck(drawn, kept):
        seen += 1
        kills += Counter(struck)
        outcome.failures += [f"{name}: {problem}" for problem in broken]
        outcome.failed += bool(broken)
        print(f"{name}: {'; '.join(struck)} {broken or ''}", flush=True)
    outcome.passed = seen - outcome.failed
    outcome.counts = {"commits": kept.commits, "kills": kills.total(), "killed at": dict(sorted(kills.items()))}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _struck(drawn: Sequence[tuple[str, Case]], kept: Kept) -> Iterator[tuple[str, list[str], list[str]]]:
    """Try each case that an earlier run has not kept; yield its name, the steps that were struck and what was wrong."""
    for name, _ in drawn:
        if found := kept.find(name):
            yield name, *found
    left = [(name, case) for name, case in drawn if not kept.find(name)]
    if not left:
        return
    with tempfile.TemporaryDirectory(prefix="observatory-killed-") as directory, a_victim(Path(directory)) as victim:
        for name, case in left:
            victim.draw = random.Random(name)  # noqa: S311 - repeatable
            struck, broken = _try(victim, case)
            kept.add(name, [struck, broken])
            yield name, struck, broken


def _try(victim: Victim, case: Case) -> tuple[list[str], list[str]]:
    victim.struck.clear()
    try:
        broken = list(case.run(victim))
    except (AssertionError, TimeoutError) as error:  # an undisturbed command failed
        broken = [str(error)]
        with contextlib.suppress(AssertionError):
            victim.settle()
    return list(victim.struck), broken
