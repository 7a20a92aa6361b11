"""Kills and interrupts commands at every step of a real stack: nothing is lost, duplicated or left incomplete."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

from observatory.workspace import Workspace
from proofs.record import Outcome
from tests.support.checkout import SOURCE, Checkout
from tests.support.life import Life

PROMISE = (
    "up, down and down --keep-data are killed or interrupted at any step, or the process that hosts their providers is "
    "killed: the next command continues, with one PostgreSQL, no orphan process, no partial file and every "
    "acknowledged trace."
)
KILLS = (("SIGKILL", "command"), ("SIGINT", "command"), ("SIGKILL", "host"))


def prove(rounds: int, share: int) -> Outcome:
    """Run a stack under each kind of kill, `rounds` times; a `share` of 1 kills every step at every moment."""
    outcome, blows, begun = Outcome(promise=PROMISE), Counter[str](), time.monotonic()
    for seed in range(rounds):
        for signal, target in KILLS:
            life = _life(signal, target, share, seed)
            blows += Counter({f"{signal} of the {target} in {name}": count for name, count in life.blows.items()})
            outcome.failures += life.broken
    outcome.failed = len(outcome.failures)
    outcome.passed = sum(blows.values()) - outcome.failed
    outcome.counts = {"one of so many steps is struck": share, "blows": dict(blows)}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _life(signal: str, target: str, share: int, seed: int) -> Life:
    with tempfile.TemporaryDirectory(prefix="observatory-crash-") as directory:
        root = Path(directory) / "checkout"
        root.mkdir()
        checkout = Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())
        life = Life(checkout=checkout, signals=(signal,), target=target, share=share, seed=seed)
        try:
            return life.run()
        except AssertionError as error:  # an undisturbed command failed: the round ends here
            life.broken.append(f"{signal} of the {target}, round {seed}: {error}")
            return life
        finally:
            checkout.kill_all()
