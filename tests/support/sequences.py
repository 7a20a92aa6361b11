"""Sequences of commands of both engines over one stack, some of them killed, and what must hold at their end.

Owns the steps and the check of the end. A command may fail, if it shows no traceback and says what to do.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import crash, language_host
from tests.support.checkout import SOURCE, UP_TIMEOUT_S, Checkout

CLI = SOURCE / ".observatory/bin"  # where `make cli` builds it
SETTLE_S = 300.0  # until a stack is healthy and verified, on a busy machine
PAUSE_S = 2.0
REMEDY = re.compile(r"`(observatory|pulumi|make) |PULUMI_|pulumi (cancel|refresh|stack|up)|Restore|restore|run ")
NO_STACK = "no stack named 'local' found"  # what Pulumi prints after a `down`: there is nothing left to destroy
ENGINE = """
import pathlib, sys
from observatory.engines import embedded
from observatory.engines.embedded import EngineError
from observatory.platforms import open_platform
from observatory.platforms.stack_state import engine_options
from observatory.workspace import Workspace
from observatory.errors import ObservatoryError
try:
    getattr(embedded, sys.argv[1])(engine_options(open_platform(Workspace(root=pathlib.Path.cwd(), stack="local"))))
except ObservatoryError as error:
    sys.exit(f"error: {error}")
"""


# Seconds that a command takes on a quiet machine of two cores, without a running stack and with one.
TYPICAL = {
    "up embedded": (24.0, 5.0),
    "up cli": (40.0, 12.0),
    "pulumi up": (38.0, 12.0),
    "pulumi destroy": (2.0, 11.0),
    "destroy embedded": (1.5, 8.5),
    "down": (2.0, 12.0),
    "down embedded": (1.5, 9.0),
    "down keeping the data": (1.5, 8.0),
}


@dataclass(kw_only=True)
class Durations:
    """How long commands take here, so that a kill can fall at a share of a command's duration.

    A command that was not yet measured takes as much longer than typically as the first measured one did.
    """

    measured: dict[tuple[str, bool], float] = field(default_factory=dict)
    slowness: float | None = None

    def expected(self, command: str, *, running: bool) -> float:
        """Return the seconds that a command takes on a stack that runs, or on one that does not."""
        typical = TYPICAL[command][running] * (self.slowness or 1.0)
        return self.measured.get((command, running), typical)

    def note(self, command: str, seconds: float, *, running: bool) -> None:
        """Note what a command took that came to its end."""
        self.measured[command, running] = seconds
        if self.slowness is None and command in TYPICAL:
            self.slowness = seconds / TYPICAL[command][running]


@dataclass(kw_only=True)
class Life:
    """One stack, the steps that it went through, and what was not as promised; `kills` counts those before an end."""

    checkout: Checkout
    seed: int
    durations: Durations = field(default_factory=Durations)
    steps: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    kills: int = 0
    refused: bool = False

    def run(self, names: Sequence[str]) -> Life:
        """Run the steps, then bring the stack up by a random engine, and check it."""
        draw = random.Random(self.seed)  # noqa: S311 - no secret
        for name in names:
            self._step(name, draw)
        self._end(draw.choice(("embedded", "cli")))
        return self

    def _step(self, name: str, draw: random.Random) -> None:
        if name == "power cut":
            self.checkout.kill_all()
            self.steps.append(name)
            return
        command, running = name.removeprefix("killed "), bool(crash.postmasters(self.checkout))
        share = draw.random() if command != name else None
        seconds = share * self.durations.expected(command, running=running) if share else None
        begun = time.monotonic()
        code, said = self._perform(COMMANDS[command](self.checkout), seconds)
        if code == 0:
            self.durations.note(command, time.monotonic() - begun, running=running)
        self.kills += code == -signal.SIGKILL
        self.steps.append(f"{name}{f' after {seconds:.1f} s, {share:.0%}' if seconds else ''} -> {code}")
        self._check(code, said, plain=command.startswith("pulumi "))

    def _check(self, code: int, said: str, *, plain: bool) -> None:
        """Note a traceback, and a failure without a way out; the words of a plain `pulumi` are its own."""
        problems = ["a traceback"] if "Traceback" in said else []
        explained = REMEDY.search(said) or (plain and NO_STACK in said)
        if code not in {0, -signal.SIGKILL} and not explained:
            problems.append("a failure without a way out")
        if problems:
            self.broken.append(f"{self}: {', '.join(problems)}\n{said}")

    def _perform(self, command: Sequence[str], seconds: float | None) -> tuple[int, str]:
        """Run a command, or kill it with its process group after `seconds`."""
        process = subprocess.Popen(
            command,
            cwd=self.checkout.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds or UP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # the command alone: what it started must be found by the next
            said, _ = _output(process)
        return process.returncode, said

    def _environment(self) -> dict[str, str]:
        """Return the environment of a user who has run `eval "$(observatory env)"`."""
        path = os.pathsep.join([str(CLI), str(language_host.BIN), str(Path(sys.executable).parent), os.environ["PATH"]])
        home = {"PULUMI_HOME": str(self.checkout.root.parent / f"{self.checkout.root.name}-pulumi")}
        base = {**os.environ, **self.checkout.environment, "PATH": path, **home}
        printed = subprocess.run(
            _observatory("env", "--output", "json"),
            cwd=self.checkout.root,
            env=base,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return {**base, **(json.loads(printed.stdout) if printed.returncode == 0 else {})}

    def _end(self, engine: str) -> None:
        """Bring the stack up and check that it works, or that the refusal names the way out."""
        code, said = self._perform(_observatory("up", "--engine", engine), None)
        self.steps.append(f"end: up {engine} -> {code}")
        if code:
            self.refused = code == 3 and bool(REMEDY.search(said))
            self.broken += [] if self.refused else [f"{self}: the last `up` failed\n{said}"]
            return
        deadline = time.monotonic() + SETTLE_S
        while (result := self._perform(_observatory("verify"), None))[0] and time.monotonic() < deadline:
            time.sleep(PAUSE_S)
        again = self.checkout.json("up", "--engine", "embedded")
        changed = [step for step in again["steps"] if step["operation"] != "same"]
        doubled = crash.postmasters(self.checkout)
        self.broken += [f"{self}: verify fails\n{result[1]}"] if result[0] else []
        self.broken += [f"{self}: another `up` changes {changed}"] if changed else []
        self.broken += [f"{self}: postmasters {doubled}"] if len(doubled) != 1 else []

    def __str__(self) -> str:
        """Return the seed and the steps."""
        return f"seed {self.seed}: {'; '.join(self.steps)}"


def _output(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a killed command wrote, without waiting for what it started, which has its output too."""
    try:
        return process.communicate(timeout=PAUSE_S)
    except subprocess.TimeoutExpired:
        process.wait()
        return "", ""


def _observatory(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "observatory", *arguments]


def _pulumi(*arguments: str) -> list[str]:
    return [str(CLI / "pulumi"), "--non-interactive", *arguments, "--stack", "local"]


COMMANDS: dict[str, Callable[[Checkout], list[str]]] = {
    "up embedded": lambda _: _observatory("up", "--engine", "embedded"),
    "up cli": lambda _: _observatory("up", "--engine", "cli"),
    "pulumi up": lambda _: _pulumi("up", "--yes", "--skip-preview"),
    "pulumi refresh": lambda _: _pulumi("refresh", "--yes", "--skip-preview"),
    "pulumi destroy": lambda _: _pulumi("destroy", "--yes", "--skip-preview"),
    "refresh embedded": lambda _: [sys.executable, "-c", ENGINE, "refresh"],
    "destroy embedded": lambda _: [sys.executable, "-c", ENGINE, "destroy"],
    "down": lambda _: _observatory("down", "--yes"),
    "down embedded": lambda _: _observatory("down", "--yes", "--engine", "embedded"),
    "down keeping the data": lambda _: _observatory("down", "--keep-data"),
}
UPS = ("up embedded", "up cli", "pulumi up")
KILLED = tuple(
    f"killed {name}" for name in (*UPS, "pulumi destroy", "destroy embedded", "down", "down keeping the data")
)


def drawn(seed: int, length: int) -> list[str]:
    """Return a random sequence that begins with an `up`."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    return [draw.choice(UPS[:2]), *draw.choices((*COMMANDS, *KILLED, "power cut"), k=length - 1)]


def has_cli() -> bool:
    """Return whether `make cli` was run here."""
    return shutil.which("pulumi", path=str(CLI)) is not None
