"""Kills `release deploy` by SIGKILL at any moment, with a migration pending, on a real stack."""

from __future__ import annotations

import json
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from observatory.database import connect, status
from observatory.database.migrations.files import load_migrations
from observatory.documents.rollout import ENDED
from proofs.delivery import BAKE_S, EMBEDDED, LOCK_FREE_S, NEW, OLD, Struck, Victim, a_victim, killed
from proofs.record import Outcome

PROMISE = (
    "After `release deploy` is killed by SIGKILL at any moment, the deployment lock is free within a second, and the "
    "same command (at once, or after a `rollback` of a deployment under way) ends with the version live, each "
    "migration applied once and the stack as declared."
)
PROGRESS = re.compile(r"\S+Z (?P<mark>[…✓✗!?]) (?P<task>.+?)(?: [0-9.]+ s)?")  # a line of progress, without its time


def prove_kills(rounds: int, share: int) -> Outcome:
    """Kill `rounds` workflows, times `share`, at moments spread evenly over the duration of one."""
    outcome, begun, blows = Outcome(promise=PROMISE), time.monotonic(), Counter[str]()
    slowest, total = 0.0, rounds * share
    with tempfile.TemporaryDirectory(prefix="observatory-kill-") as directory, a_victim(Path(directory)) as victim:
        _undisturbed(victim, number=0)  # the first run fills caches
        whole = _undisturbed(victim, number=1)
        for number in range(total):
            seconds = whole * (number + random.Random(number).random()) / total  # noqa: S311 - no secret
            undo = bool(number % 2)
            struck = _strike(victim, number=number + 2, seconds=seconds, undo=undo)
            slowest = max(slowest, struck.lock_s)
            blows[f"{struck.moment}, then {'rollback and ' if undo else ''}rerun"] += 1
            outcome.failures += [
                f"round {number}, killed after {seconds:.1f} s, {struck.moment}: {each}" for each in struck.broken
            ]
            outcome.failed += bool(struck.broken)
    outcome.passed = total - outcome.failed
    outcome.counts = {
        "longest until the lock was free, s": round(slowest, 2),
        "a workflow undisturbed, s": round(whole, 1),
        "kills": dict(sorted(blows.items())),
    }
    outcome.seconds = time.monotonic() - begun
    return outcome


def _undisturbed(victim: Victim, *, number: int) -> float:
    """Run one workflow to its end; return its seconds."""
    workflow, started = _workflow(victim, number), time.monotonic()
    victim.checkout.run(*workflow, *EMBEDDED)
    return time.monotonic() - started


def _workflow(victim: Victim, number: int) -> tuple[str, ...]:
    """Add a migration; return the command that deploys it with the version that is not live."""
    add_migration(victim.checkout.root, number)
    wanted = NEW if victim.document[victim.active]["version"] == OLD else OLD
    return ("release", "deploy", wanted, "--bake", str(BAKE_S))


def _strike(victim: Victim, *, number: int, seconds: float, undo: bool) -> Struck:
    """Kill one workflow after `seconds`, unless it ends before; recover, and check the result."""
    workflow = _workflow(victim, number)
    moment, lock_s = _kill(victim, (*workflow, *EMBEDDED), seconds)
    broken = [f"the lock was free after {lock_s:.1f} s only"] if lock_s > LOCK_FREE_S else []
    if undo and victim.deployment["status"] not in ENDED:
        broken += victim.run("rollback", "--method", "blue-green", "--yes")
    broken += victim.run(*workflow)
    return Struck(moment=moment, lock_s=lock_s, broken=[*broken, *_unapplied(victim), *victim.apart(workflow[2])])


def _kill(victim: Victim, workflow: tuple[str, ...], seconds: float) -> tuple[str, float]:
    """Kill the workflow; return the last step that it reported, and the seconds until the lock was free."""
    with connect(victim.conninfo, purpose="proof") as connection:
        process = victim.checkout.start(*workflow)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        lock_s = killed(process, connection)
    _, progress = process.communicate()
    if process.returncode != -signal.SIGKILL:
        return f"ended with {process.returncode}", lock_s
    steps = [match for line in progress.splitlines() if (match := PROGRESS.fullmatch(line.rstrip()))]
    if not steps:
        return "at its start", lock_s
    moment = "in" if steps[-1]["mark"] == "…" else "after"
    return f"{moment} {steps[-1]['task'].partition(':')[0]}", lock_s


def add_migration(root: Path, number: int) -> None:
    """Write a migration to the checkout, and the objects it creates to the catalogue."""
    directory = root / "migrations"
    version, column = max(499, *(int(file.name[:3]) for file in directory.glob("*.sql"))) + 1, f"proof_{number}"
    statement = f"ALTER TABLE projects ADD COLUMN {column} text;\n"
    (directory / f"{version:03d}_{column}.sql").write_text(f"-- A column.\n\n{statement}")
    catalogue = root / "observatory/database/catalogue/apache.json"
    steps = json.loads(catalogue.read_text())
    made = load_migrations(directory, "apache")[-1]
    sets = {"column": {f"public.projects.{column}": "text"}}
    catalogue.write_text(json.dumps([*steps, {"sha256": made.sha256, "sets": sets, "removes": []}]))


def _unapplied(victim: Victim) -> Iterator[str]:
    """Yield how the ledger differs from the files."""
    directory = victim.checkout.root / "migrations"
    found = status(victim.conninfo, migrations=directory)
    if found.pending:
        yield f"pending: {', '.join(found.pending)}"
    applied, files = [entry.version for entry in found.applied], load_migrations(directory, "apache")
    if applied != [migration.version for migration in files]:
        yield f"the ledger has {applied}"
