"""Each change of an alert's rule (comparator, threshold, label, window, period) breaks a scenario of the alert."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from monitoring import ALERTS
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from proofs.record import Outcome
from tests.monitoring.mutants import UNCHANGED, mutants, surviving
from tests.support.checkout import SOURCE

PROMISE = "Every mutant of every alert's rule is detected by a scenario, and every rule itself passes its scenarios."


def prove(rounds: int, share: int) -> Outcome:
    """Run the scenarios of each alert against the mutants of its rule; one of so many alerts with `share`."""
    started = time.monotonic()
    tried, failures = 0, list[str]()
    with TemporaryDirectory() as directory:
        sandbox = Sandbox(Path(directory) / "home", Workspace(root=SOURCE, stack="local").ensure_rootfs())
        for alert in ALERTS[::share] * rounds:
            tested = mutants(alert)
            left = surviving(sandbox, tested)
            tried += len(tested) - 1
            failures += [f"{alert.name}: {mutant.change}" for mutant in left if mutant.change != UNCHANGED]
            failures += (
                [] if any(mutant.change == UNCHANGED for mutant in left) else [f"{alert.name}: a scenario fails"]
            )
    return Outcome(
        promise=PROMISE,
        passed=tried - len(failures),
        failed=len(failures),
        seconds=time.monotonic() - started,
        failures=failures,
        counts={"alerts": len(ALERTS[::share]), "mutants": tried},
    )
