"""Flips one byte in a random file of a backup repository: `observatory backup verify --contents` names the file."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from observatory.backups.repository import check_repositories
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from proofs.record import Outcome
from tests.backups.conftest import ArchivingServer, every_kind_of_file
from tests.support.checkout import SOURCE
from tests.support.flipped_bytes import KINDS, files_by_kind, flipped_byte, named
from tests.support.ports import free_ports

PROMISE = (
    "One flipped byte anywhere in a file of any kind in either backup repository is found by `observatory backup "
    "verify --contents`, which names the file; a whole repository has no finding."
)
FLIPS = 100


def prove(rounds: int, share: int) -> Outcome:
    """Flip 100 bytes in each round, a `share` of 1 all of them; each kind of file has as many."""
    outcome, begun = Outcome(promise=PROMISE), time.monotonic()
    flips = Counter[str]()
    rootfs = Workspace(root=SOURCE, stack="local").ensure_rootfs()
    for seed in range(rounds):
        with tempfile.TemporaryDirectory(prefix="observatory-flips-") as directory:
            server = ArchivingServer(Sandbox(Path(directory) / "home", rootfs), free_ports()["postgres"])
            try:
                server.create()
                every_kind_of_file(server)
                _flip_in(server, outcome, flips, number=FLIPS // share, seed=seed)
            finally:
                server.sandbox.stop()
    outcome.failed = len(outcome.failures)
    outcome.passed = sum(flips.values()) + rounds - outcome.failed
    outcome.counts = {"flips by kind of file": dict(flips), "checks of whole repositories": rounds}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _flip_in(server: ArchivingServer, outcome: Outcome, flips: Counter[str], *, number: int, seed: int) -> None:
    draw, kinds = random.Random(seed), tuple(KINDS)  # noqa: S311 - no secret
    for flip in range(number):
        kind, repository = kinds[flip % len(kinds)], draw.choice(server.tool.repositories)
        file = draw.choice(files_by_kind(server.tool.place(repository))[kind])
        flips[kind] += 1
        with flipped_byte(file, draw) as place:
            found = check_repositories(server.sandbox, repository=repository, contents=True).findings
        if not any(named(file) in each.text for each in found):
            outcome.failures.append(f"byte {place} of {named(file)} in repository {repository} ({kind}): {found}")
    if left := check_repositories(server.sandbox, contents=True).findings:
        outcome.failures.append(f"the whole repositories have findings: {left}")
