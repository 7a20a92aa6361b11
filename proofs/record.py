"""docs/proofs.json: one entry for each proof, made by its last run. Other entries stay as they are."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from observatory.files.atomic import write_file

RECORD = Path(__file__).resolve().parent.parent / "docs/proofs.json"


@dataclass(kw_only=True)
class Outcome:
    """What a proof found.

    Attributes:
        promise: What is proved, in one sentence.
        passed: How many cases were as promised.
        failed: How many were not.
        seconds: Wall time.
        counts: The cases by kind, and whatever else is worth knowing.
        failures: What was not as promised, in full.
    """

    promise: str
    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def record(name: str, rounds: int, outcome: Outcome, *, file: Path = RECORD) -> None:
    """Put a proof's outcome in its place in the document, with what it was made on."""
    document = json.loads(file.read_text()) if file.exists() else {}
    entry = {"commit": commit(), "machine": machine(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
    document[name] = {**entry, "rounds": rounds, **asdict(outcome), "seconds": round(outcome.seconds)}
    write_file(file, json.dumps(dict(sorted(document.items())), indent=2) + "\n", mode=0o644)


def machine() -> str:
    """Describe the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {system}"


@functools.cache
def commit() -> str:
    """Return the commit, marked where files differed from it when this was first asked: results are files, too."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return told.stdout.strip()
