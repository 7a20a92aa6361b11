"""Random sequences of commands of both engines, some of them killed, on a real stack."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from observatory.workspace import Workspace
from proofs.kept import Kept
from proofs.record import Outcome
from tests.support.checkout import SOURCE, Checkout
from tests.support.sequences import Durations, Life, drawn, has_cli

PROMISE = (
    "Random sequences of up, down, destroy, refresh and kills by the embedded engine, by the Pulumi CLI through the "
    "command, and by the Pulumi CLI alone end in a stack that works and that another up does not change, or in a "
    "refusal that names the way out."
)
LENGTH = 5  # of a sequence, without the `up` at its end


def prove(rounds: int, share: int, kept: Kept) -> Outcome:
    """Run `rounds` sequences; `share` is the first seed, so that a failed sequence can be repeated alone."""
    outcome, begun, steps = Outcome(promise=PROMISE), time.monotonic(), Counter[str]()
    if not has_cli():
        outcome.failures, outcome.failed = ["there is no Pulumi CLI: run `make cli`"], 1
        return outcome
    refused, durations, kills = [], Durations(), 0
    for seed in range(share, share + rounds):
        if not kept.find(str(seed)):
            kept.add(str(seed), _result(_life(seed, durations)))
        life = kept.find(str(seed))
        kills += life["kills"]
        steps += Counter(step.partition(" after ")[0].partition(" -> ")[0] for step in life["steps"])
        outcome.failures += life["broken"]
        outcome.failed += bool(life["broken"])
        refused += [seed] if life["refused"] else []
        end = "broken" if life["broken"] else "refused" if life["refused"] else "works"
        print(f"{end}: seed {seed}: {'; '.join(life['steps'])}", flush=True)
    outcome.passed = rounds - outcome.failed
    outcome.counts = {
        "commits": kept.commits,
        "seeds": [share, share + rounds - 1],
        "refused with the way out": refused,
        "killed before their end": kills,
        "steps": dict(sorted(steps.items())),
    }
    outcome.seconds = time.monotonic() - begun
    return outcome


def _result(life: Life) -> dict[str, Any]:
    return {"steps": life.steps, "broken": life.broken, "kills": life.kills, "refused": life.refused}


def _life(seed: int, durations: Durations) -> Life:
    with tempfile.TemporaryDirectory(prefix="observatory-sequence-", ignore_cleanup_errors=True) as directory:
        root = Path(directory) / "checkout"
        root.mkdir()
        checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
        life = Life(checkout=checkout, seed=seed, durations=durations)
        try:
            return life.run(drawn(seed, LENGTH))
        except AssertionError as error:  # an undisturbed command failed
            life.broken.append(f"{life}: {error}")
            return life
        finally:
            checkout.kill_all()
