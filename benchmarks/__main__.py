"""`make bench`: measure, and write docs/benchmarks.md as measured."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from dataclasses import asdict
from pathlib import Path

from benchmarks import ingest, startup

REPORT = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"
TEMPLATE = Path(__file__).with_name("report.md")
RATE, BATCH, SECONDS = 500, 50, 60


def machine() -> str:
    """Describe what this was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def commit() -> str:
    """Return the commit that was measured, marked where files differ from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()


def median(values: list[float]) -> str:
    """Return `median (min-max)` in seconds."""
    return f"{statistics.median(values):.1f} s ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    """Measure startup and ingest on one fresh copy of the checkout."""
    checkout = startup.fresh_checkout()
    try:
        started = startup.measure(checkout)
        names = ("service_url", "api_key", "ca_file", "database_url")
        url, key, ca_file, database = (_output(checkout.root, name) for name in names)
        taken = ingest.measure(url, key, ca_file, database, rate=RATE, batch=BATCH, seconds=SECONDS)
        values = {name: median(value) for name, value in asdict(started).items() if isinstance(value, list)}
        report = TEMPLATE.read_text().format(
            machine=machine(),
            commit=commit(),
            cold=f"{started.cold:.0f} s",
            down=f"{started.down:.1f} s",
            memory=f"{started.memory_mb} MiB",
            ingest=taken,
            **values,
        )
        REPORT.write_text(report)
        print(report)
    finally:
        startup.make(checkout, "down")
        shutil.rmtree(checkout.root.parent)


def _output(root: Path, name: str) -> str:
    program = root / ".venv/bin/observatory"
    done = subprocess.run(
        [program, "outputs", name, "--show-secrets"], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
