"""`make bench`: measure, and write docs/benchmarks.md and docs/benchmarks-engine.md as measured."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import delivery, engine, faults, ingest, migrations, startup
from observatory.runtime import Sandbox, rootfs_path
from proofs.record import commit, machine
from tests.support.checkout import Checkout

REPORT = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"
TEMPLATE = Path(__file__).with_name("report.md")
ROTATE_AFTER_S = 5.0
RATES, SECONDS = ((500, 50), (1000, 100)), 60  # traces a second, and in a batch


def median(values: list[float]) -> str:
    """Return `median (min-max)` in seconds."""
    return f"{statistics.median(values):.1f} s ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    """Measure all and write the pages; of the stack's parts that are named, print what they say.

    The engine is measured where there is a CLI to measure it by.
    """
    parts = set(sys.argv[1:])
    if unknown := parts - PARTS.keys() - ALONE:
        known = ", ".join((*PARTS, *sorted(ALONE)))
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are: {known}")
    if "engine" in parts or (not parts and shutil.which("pulumi")):
        print(engine.write(machine(), commit()))
    if not parts or "migrations" in parts:
        print(migrations.write(machine(), commit()))
    if not parts or parts - ALONE:
        measure_stack(parts - ALONE)


def measure_stack(parts: set[str]) -> None:
    """Measure parts, or all, on a fresh copy of the checkout."""
    checkout = startup.fresh_checkout()
    try:
        measured = {name: measure(checkout) for name, measure in PARTS.items() if name in (parts or PARTS)}
        if "delivery" in measured:
            print(delivery.write(measured.pop("delivery"), machine(), commit()))
        if parts:
            print(measured or "")
        else:
            write(measured)
    finally:
        startup.make(checkout, "down")
        shutil.rmtree(checkout.root.parent)


def write(measured: dict[str, Any]) -> None:
    """Write the page."""
    started = measured["startup"]
    values = {name: median(value) for name, value in asdict(started).items() if isinstance(value, list)}
    report = TEMPLATE.read_text().format(
        machine=machine(),
        commit=commit(),
        cold=f"{started.cold:.0f} s",
        down=f"{started.down:.1f} s",
        memory=f"{started.memory_mb} MiB",
        ingest=[*measured["ingest"], measured["rotation"]],
        faults="\n".join(fault_row(fault) for fault in measured["faults"]),
        **values,
    )
    REPORT.write_text(report)
    print(report)


def fault_row(fault: faults.Fault) -> str:
    """Return a row of the table of faults."""
    cells = (
        fault.name,
        fault.requests,
        fault.failed,
        fault.late,
        f"{fault.served_s:.1f} s",
        f"{fault.recovered_s:.1f} s",
        f"{fault.lost} of {fault.acknowledged}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def measure_ingest(checkout: Checkout) -> list[ingest.Ingest]:
    """Measure each rate on the stack that is up."""
    stack = stack_of(checkout)
    return [
        ingest.measure(
            stack.service_url,
            stack.api_key,
            stack.ca_file,
            stack.database_url,
            rate=rate,
            batch=batch,
            seconds=SECONDS,
        )
        for rate, batch in RATES
    ]


def measure_rotation(checkout: Checkout) -> ingest.Ingest:
    """Measure the higher rate while every password is rotated."""
    stack, (rate, batch) = stack_of(checkout), RATES[-1]
    admin = f"{_output(checkout.root, 'admin_database_url')} dbname=observatory"  # no password, so none that goes
    with ThreadPoolExecutor() as pool:
        rotation = pool.submit(_rotate_after, checkout, ROTATE_AFTER_S)
        measured = ingest.measure(
            stack.service_url, stack.api_key, stack.ca_file, admin, rate=rate, batch=batch, seconds=SECONDS
        )
        rotation.result()
    return measured


def _rotate_after(checkout: Checkout, seconds: float) -> None:
    time.sleep(seconds)
    command = [str(checkout.root / ".venv/bin/observatory"), "rotate-passwords"]
    subprocess.run(command, cwd=checkout.root, check=True, capture_output=True)


def measure_faults(checkout: Checkout) -> list[faults.Fault]:
    """Make every fault, one after the other, each on a stack that is well."""
    stack, sandbox = stack_of(checkout), Sandbox(checkout.home, rootfs_path(checkout.home.parent.parent / "cache"))
    kinds: dict[str, Callable[[], Callable[[], None]]] = {
        "pgBouncer killed": lambda: faults.kill(faults.pid_of(sandbox, "pgbouncer")),
        "Valkey killed": lambda: faults.kill(faults.pid_of(sandbox, "valkey")),
        f"Valkey away for {faults.DOWN_S} s": lambda: faults.stop_for_a_while(sandbox, "valkey"),
        f"pgBouncer away for {faults.DOWN_S} s": lambda: faults.stop_for_a_while(sandbox, "pgbouncer"),
    }
    return [faults.measure(stack, name, make()) for name, make in kinds.items()]


def stack_of(checkout: Checkout) -> faults.Stack:
    """Return how to reach the checkout's stack, which is brought up where it is not."""
    startup.make(checkout, "up")
    names = ("service_url", "api_key", "ca_file", "database_url")
    return faults.Stack(**{name: _output(checkout.root, name) for name in names})


def _output(root: Path, name: str) -> str:
    program = root / ".venv/bin/observatory"
    done = subprocess.run(
        [program, "outputs", name, "--show-secrets"], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


ALONE = frozenset({"engine", "migrations"})  # need no stack
PARTS: dict[str, Callable[[Checkout], Any]] = {
    "startup": startup.measure,
    "ingest": measure_ingest,
    "rotation": measure_rotation,
    "faults": measure_faults,
    "delivery": delivery.measure,
}

if __name__ == "__main__":
    main()
