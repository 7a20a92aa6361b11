"""Duration of commands for a user: the first `make up`, `up` of a stopped stack, and `up` of a running stack."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkout import Checkout

MAKE_TIMEOUT_S = 900
REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Startup:
    """Wall seconds of whole commands; memory (PSS) in MiB.

    `*_engine` is the part of the engine, and `offline` is the preview of production without the Pulumi CLI.
    """

    cold: float
    warm: list[float]
    warm_engine: list[float]
    unchanged: list[float]
    unchanged_engine: list[float]
    preview: list[float]
    offline: list[float]
    down: float
    memory_mb: int


def make(checkout: Checkout, *targets: str) -> float:
    """Run make in a checkout with an empty home, like a new user; returns wall seconds."""
    home = checkout.root.parent / "home"
    home.mkdir(exist_ok=True)
    started = time.monotonic()
    done = subprocess.run(
        ["make", *targets],
        cwd=checkout.root,
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MAKE_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"make {' '.join(targets)} failed:\n{done.stdout}\n{done.stderr}")
    return time.monotonic() - started


def measure(checkout: Checkout) -> Startup:
    """Measure a fresh checkout; its stack runs when this returns."""
    cold = make(checkout, "up")
    warm, unchanged, previews, offline = [], [], [], []
    for _ in range(REPEATS):
        make(checkout, "down", "KEEP=1")
        warm.append(_timed(checkout, "up"))
        unchanged.append(_timed(checkout, "up"))
        previews.append(_timed(checkout, "preview"))
        offline.append(_timed(checkout, "preview", "--environment", "production"))
    status = json.loads(_observatory(checkout, "status"))
    return Startup(
        cold=cold,
        warm=[wall for wall, _ in warm],
        warm_engine=[engine for _, engine in warm],
        unchanged=[wall for wall, _ in unchanged],
        unchanged_engine=[engine for _, engine in unchanged],
        preview=[wall for wall, _ in previews],
        offline=[wall for wall, _ in offline],
        down=_down_time(checkout),
        memory_mb=sum(daemon["memory_mb"] or 0 for daemon in status["daemons"]),
    )


def _down_time(checkout: Checkout) -> float:
    seconds = make(checkout, "down", "KEEP=1")
    make(checkout, "up")
    return seconds


def _timed(checkout: Checkout, *command: str) -> tuple[float, float]:
    """Return wall seconds of the whole command, and of the engine."""
    started = time.monotonic()
    report = json.loads(_observatory(checkout, *command, "--engine", "embedded"))
    return time.monotonic() - started, report["duration"]


def _observatory(checkout: Checkout, *arguments: str) -> str:
    program = checkout.root / ".venv/bin/observatory"
    done = subprocess.run(
        [program, *arguments, "--output", "json"], cwd=checkout.root, capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise RuntimeError(f"observatory {' '.join(arguments)} printed no report:\n{done.stderr}")
    return done.stdout


def fresh_checkout() -> Checkout:
    """Return a copy of this checkout in an empty directory, on free ports, without a root filesystem."""
    directory = Path(tempfile.mkdtemp(prefix="observatory-bench-"))
    return Checkout.copy(directory / "checkout", rootfs=None)
