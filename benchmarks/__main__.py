"""`python -m benchmarks [NAME...] [--sizes GB,GB]`: run every benchmark, or some, and write docs/benchmarks*.md."""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import backups, capacity, delivery, engine, faults, gates, hostile, ingest, migrations, startup
from observatory.files.atomic import write_file
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from proofs.record import commit, machine
from tests.support.checkout import Checkout

PUBLIC = 0o644
REPORT = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"
TEMPLATE = Path(__file__).with_name("report.md")
ROTATE_AFTER_S = 5.0
RATES, SECONDS = ((500, 50), (1000, 100)), 60  # (traces per second, traces per batch)


def median(values: list[float]) -> str:
    """Return `median (min-max)` in seconds."""
    return f"{statistics.median(values):.1f} s ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    """Run all benchmarks and write their pages, or run the named benchmarks.

    Named benchmarks of a stack are printed and not written. The engine is measured only if the Pulumi CLI is installed.
    """
    names = (*PARTS, *sorted(WITHOUT_STACK))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; by default all")
    parser.add_argument("--sizes", type=_sizes, default=backups.SIZES, help="of `backups`, in GB; by default 1,5,10")
    chosen = parser.parse_args()
    parts = set(chosen.names)
    if unknown := sorted(parts - set(names)):
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(names)}")
    if "engine" in parts or (not parts and shutil.which("pulumi")):
        print(engine.write(machine(), commit()))
    if not parts or "migrations" in parts:
        print(migrations.write(machine(), commit()))
    if not parts or "gates" in parts:
        gates.write()
    if not parts or "backups" in parts:
        print(backups.write(chosen.sizes))
    if not parts or parts - WITHOUT_STACK:
        measure_stack(parts - WITHOUT_STACK)


def _sizes(text: str) -> tuple[float, ...]:
    """Read sizes with commas between them."""
    return tuple(float(each) for each in text.split(","))


def measure_stack(parts: set[str]) -> None:
    """Run the named benchmarks, or all, on a fresh copy of the checkout."""
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
    """Write docs/benchmarks.md."""
    started = measured["startup"]
    values = {name: median(value) for name, value in asdict(started).items() if isinstance(value, list)}
    report = TEMPLATE.read_text().format(
        machine=machine(),
        commit=commit(),
        cold=f"{started.cold:.0f} s",
        down=f"{started.down:.1f} s",
        memory=f"{started.memory_mb} MiB",
        ingest=[*measured["ingest"], measured["rotation"]],
        capacity=measured["capacity"],
        hostile="\n".join(map(hostile.row, measured["hostile"])),
        faults="\n".join(fault_row(fault) for fault in measured["faults"]),
        **values,
    )
    write_file(REPORT, report, mode=PUBLIC)
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
    """Measure each rate on the running stack."""
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
    # This URL has no password, so the rotation does not affect it.
    admin = f"{_output(checkout.root, 'admin_database_url')} dbname=observatory"
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


def measure_capacity(checkout: Checkout) -> capacity.Capacity:
    """Measure the capacity of ingest beside that of COPY."""
    stack = stack_of(checkout)
    return capacity.measure(stack.service_url, stack.api_key, stack.ca_file, stack.database_url)


def measure_hostile(checkout: Checkout) -> list[hostile.Neighbours]:
    """Measure small writes beside hostile clients."""
    stack = stack_of(checkout)
    admin = f"{_output(checkout.root, 'admin_database_url')} dbname=observatory"
    return hostile.measure(stack.service_url, stack.api_key, stack.ca_file, admin)


def measure_faults(checkout: Checkout) -> list[faults.Fault]:
    """Inject every fault, one after the other, each on a healthy stack."""
    stack, sandbox = stack_of(checkout), Sandbox(checkout.home, Workspace(root=checkout.root, stack="local").rootfs)
    kinds: dict[str, Callable[[], Callable[[], None]]] = {
        "pgBouncer killed": lambda: faults.kill(faults.pid_of(sandbox, "pgbouncer")),
        "Valkey killed": lambda: faults.kill(faults.pid_of(sandbox, "valkey")),
        f"Valkey stopped for {faults.DOWN_S} s": lambda: faults.stop_temporarily(sandbox, "valkey"),
        f"pgBouncer stopped for {faults.DOWN_S} s": lambda: faults.stop_temporarily(sandbox, "pgbouncer"),
    }
    measured = [faults.measure(stack, name, make()) for name, make in kinds.items()]
    supervisor = faults.kill(sandbox.supervisor.pid())
    return [*measured, faults.measure(stack, "supervisor killed", supervisor, after_s=faults.AFTER_RESTART_S)]


def stack_of(checkout: Checkout) -> faults.Stack:
    """Bring up the checkout's stack if necessary; returns its addresses and key."""
    startup.make(checkout, "up")
    names = ("service_url", "api_key", "ca_file", "database_url")
    return faults.Stack(**{name: _output(checkout.root, name) for name in names})


def _output(root: Path, name: str) -> str:
    program = root / ".venv/bin/observatory"
    done = subprocess.run(
        [program, "outputs", name, "--show-secrets"], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


WITHOUT_STACK = frozenset({"backups", "engine", "gates", "migrations"})
PARTS: dict[str, Callable[[Checkout], Any]] = {
    "startup": startup.measure,
    "ingest": measure_ingest,
    "rotation": measure_rotation,
    "capacity": measure_capacity,
    "hostile": measure_hostile,
    "faults": measure_faults,
    "delivery": delivery.measure,
}

if __name__ == "__main__":
    main()
