"""Compares the times of the embedded engine and the Pulumi CLI for the same programs, each on a stack of its own.

`python -m benchmarks engine` measures and writes docs/benchmarks-engine.md; it needs a `pulumi` on PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPORT = Path(__file__).resolve().parent.parent / "docs/benchmarks-engine.md"
SIZES = (20, 100, 300)
ROUNDS = 3
OPERATIONS = {"preview": "preview", "up": "up", "no-op up": "up", "destroy": "destroy"}
TARGET_RATIO = 0.5  # of the CLI's wall time
TIMEOUT_S = 600

PROVIDER = """\
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider

class Items(ResourceProvider):
    serialize_as_secret_always = False
    def create(self, props):
        return CreateResult(props["name"], props)
    def diff(self, id_, olds, news):
        return DiffResult(changes=olds["name"] != news["name"])

class Item(Resource):
    def __init__(self, name):
        super().__init__(Items(), name, {"name": name, "tags": {"owner": "bench"}})
"""
PROGRAM = "from items import Item\nfor number in range({size}):\n    Item(f'item-{{number}}')\n"
HEAD = """\
# Benchmarks of the embedded engine

The embedded engine against the Pulumi CLI. `make bench` measures and writes this page if the Pulumi CLI is on PATH;
`python -m benchmarks engine` writes this page only.

Machine: {machine}. Commit: {commit}. CLI: {cli}.

Each program declares independent dynamic resources whose provider does nothing. In each round, both engines run
preview, up, up with nothing to change, and destroy, each on a new stack in a `file://` backend; the order of the
engines alternates. Times are wall seconds of whole processes (`python -m observatory.engines.embedded`; `pulumi` with
`--skip-preview`) as median (minimum-maximum). The ratio is the median of the rounds' ratios; the target is {target} or
less. Other processes ran on the machine, so the ratios are more reliable than single times.

| resources | operation | rounds | embedded | CLI | ratio |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """One operation at one size: wall seconds of each round, in the same order for both engines."""

    size: int
    operation: str
    embedded: list[float]
    cli: list[float]

    def __str__(self) -> str:
        ratio = statistics.median(a / b for a, b in zip(self.embedded, self.cli, strict=True))
        cells = (
            self.size,
            self.operation,
            len(self.embedded),
            _spread(self.embedded),
            _spread(self.cli),
            f"{ratio:.2f}",
        )
        return f"| {' | '.join(str(cell) for cell in cells)} |"


def measure(size: int, rounds: int = ROUNDS) -> list[Row]:
    """Run every operation on both engines, with a program of `size` resources."""
    rows = [Row(size, operation, [], []) for operation in OPERATIONS]
    for number in range(rounds):
        for is_embedded in sorted((True, False), reverse=bool(number % 2)):
            with _project(size) as (project, environment):
                if not is_embedded:
                    _run(["pulumi", "stack", "init", "bench"], project, environment)
                for row, operation in zip(rows, OPERATIONS.values(), strict=True):
                    command = _embedded(operation) if is_embedded else _cli(operation)
                    (row.embedded if is_embedded else row.cli).append(_run(command, project, environment))
    return rows


def write(machine: str, commit: str) -> str:
    """Measure, write the page and return it."""
    cli = subprocess.run(["pulumi", "version"], capture_output=True, text=True, check=True).stdout.strip()
    rows = [row for size in SIZES for row in measure(size)]
    head = HEAD.format(machine=machine, commit=commit, cli=cli, target=TARGET_RATIO)
    page = head + "".join(f"{row}\n" for row in rows)
    REPORT.write_text(page)
    return page


def _embedded(operation: str) -> list[str]:
    return [sys.executable, "-m", "observatory.engines.embedded", operation, "--stack", "bench", "--json"]


def _cli(operation: str) -> list[str]:
    unattended = [] if operation == "preview" else ["--yes", "--skip-preview"]
    return ["pulumi", operation, "--stack", "bench", "--non-interactive", *unattended]


def _run(command: list[str], project: Path, environment: dict[str, str]) -> float:
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return seconds


@contextmanager
def _project(size: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a project with an empty backend, and the environment of either engine."""
    home = Path(tempfile.mkdtemp(prefix="observatory-bench-"))
    project, backend = home / "project", home / "backend"
    project.mkdir()
    backend.mkdir()
    runtime = {"name": "python", "options": {"virtualenv": sys.prefix}}
    (project / "Pulumi.yaml").write_text(json.dumps({"name": "bench", "runtime": runtime}))
    (project / "items.py").write_text(PROVIDER)
    (project / "__main__.py").write_text(PROGRAM.format(size=size))
    environment = {
        **os.environ,
        "PULUMI_BACKEND_URL": f"file://{backend}",
        "PULUMI_CONFIG_PASSPHRASE": "a passphrase",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    try:
        yield project, environment
    finally:
        shutil.rmtree(home)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
