"""Commands killed and interrupted at every step of a real stack's life: nothing is lost, doubled or left half done."""

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
    "However often up, down and down --keep-data are killed or interrupted, at whatever step and moment, or lose the "
    "process that hosts their providers, the next one goes on: one PostgreSQL, no orphan process, no half-written "
    "file, every acknowledged trace there."
)
STRIKES = (("SIGKILL", "command"), ("SIGINT", "command"), ("SIGKILL", "host"))


def prove(rounds: int, share: int) -> Outcome:
    """Let a stack live through each kind of strike, `rounds` times; `share` 1 strikes every step at every moment."""
    outcome, blows, begun = Outcome(promise=PROMISE), Counter[str](), time.monotonic()
    for seed in range(rounds):
        for signal, target in STRIKES:
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
        except AssertionError as error:  # a command that was left alone did not come through: the life ends here
            life.broken.append(f"{signal} of the {target}, round {seed}: {error}")
            return life
        finally:
            checkout.kill_all()
