"""Runs the command, and strikes it at one exact moment: `python -m tests.support.blow ARGUMENTS...`.

The moments are seen through Python's audit events, so that the command itself has no hook for tests: it commits each
step by renaming a new state file over the old one, and all else that it keeps by renames and removals of files. Which
moment is struck, and how, is in the JSON file that OBSERVATORY_BLOWS names (see `Plan`); each blow is added to the
ledger before it falls, and no moment that stands there is struck again.
"""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import signal
import sys
import threading
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "OBSERVATORY_BLOWS"
MOMENTS = ("begun", "working", "unsaved", "saved")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which moments are struck, and how.

    Attributes:
        checkpoint: The state file.
        directory: Changes of files below it count as steps too.
        ledger: Where the blows are written, one JSON object a line.
        signal: Its name, such as SIGKILL.
        target: `command`, or `host`: the process that hosts the dynamic providers.
        moments: `begun`: the state names the step as pending, and its work begins. `working`: somewhere in the work.
            `unsaved`: the work is done, and the new state is written but not yet in place. `saved`: it is in place.
        linger: The longest wait in seconds after `begun` until `working` is struck.
        seed: Chooses among moments and steps, and the wait.
        share: Which part of steps is struck: one of `share`; and each at one of the moments only, if more than 1.
        only: A regular expression; steps without a match are left alone.
    """

    checkpoint: str
    directory: str
    ledger: str
    signal: str = "SIGKILL"
    target: str = "command"
    moments: tuple[str, ...] = MOMENTS
    linger: float = 1.0
    seed: int = 0
    share: int = 1
    only: str = ""

    def wants(self, moment: str, step: str) -> bool:
        """Tell whether the moment of the step is to be struck."""
        if not re.search(self.only, step):
            return False
        draw = zlib.crc32(f"{self.seed} {step}".encode())
        if self.share > 1 and (draw % self.share or self.moments[draw // self.share % len(self.moments)] != moment):
            return False
        return moment in self.moments


@dataclass
class Striker:
    """Watches the command from inside, as an audit hook, and strikes once."""

    plan: Plan
    struck: set[tuple[str, str]]
    pending: set[str] = field(default_factory=set)
    armed: tuple[str, str] | None = None
    fallen: bool = False
    lingers: bool = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event; see https://docs.python.org/3/library/audit_events.html."""
        if self.fallen or event not in {"os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}:
            return
        if self.armed:
            self.strike(*self.armed)
        paths = [str(path) for path in arguments[: 2 if event in {"os.rename", "os.link"} else 1]]
        if event == "os.rename" and paths[1] == self.plan.checkpoint:
            self.on_state(_pending(Path(paths[0])))
        elif paths[-1].startswith(self.plan.directory) and not paths[-1].endswith((".attrs", ".partial")):
            self.on_file(f"{event} {_neutral(paths[-1].removeprefix(self.plan.directory))}")

    def on_state(self, pending: set[str]) -> None:
        """Take a state file that is about to be put in place."""
        begun, ended = pending - self.pending, self.pending - pending
        self.pending = pending
        for step in ended:
            self.consider("unsaved", step)
        for step in ended:
            self.consider("saved", step, later=True)
        for step in begun:
            self.consider("begun", step, later=True)
            self.linger(step)

    def on_file(self, step: str) -> None:
        """Take another change of a file that is about to happen."""
        self.consider("unsaved", step)
        self.linger(step)
        self.consider("saved", step, later=True)

    def consider(self, moment: str, step: str, *, later: bool = False) -> None:
        """Strike if this moment is wanted; `later`: at the next event, when what is announced now has happened."""
        if self.is_taken or not self.is_due(moment, step):
            return
        if later:
            self.armed = moment, step
        else:
            self.strike(moment, step)

    def linger(self, step: str) -> None:
        """Strike in the middle of the step's work, if that is wanted."""
        if self.is_taken or not self.is_due("working", step):
            return
        self.lingers = True
        self.write_down("working", step)
        draw = random.Random(f"{self.plan.seed} {step}").random()  # noqa: S311 - no secret
        wait = self.plan.linger * draw**2  # most steps are short
        timer = threading.Timer(wait, self.strike, ("working", step))
        timer.daemon = True
        timer.start()

    @property
    def is_taken(self) -> bool:
        """Whether the one blow has fallen, or is on its way."""
        return self.fallen or self.lingers or self.armed is not None

    def is_due(self, moment: str, step: str) -> bool:
        return (moment, step) not in self.struck and self.plan.wants(moment, step)

    def strike(self, moment: str, step: str) -> None:
        """Write the blow down, and let it fall."""
        if self.fallen:
            return
        self.fallen = True
        if not self.lingers:
            self.write_down(moment, step)
        for pid in [os.getpid()] if self.plan.target == "command" else _hosts():
            os.kill(pid, signal.Signals[self.plan.signal])

    def write_down(self, moment: str, step: str) -> None:
        blow = {"moment": moment, "step": step, "signal": self.plan.signal, "target": self.plan.target}
        with Path(self.plan.ledger).open("a") as ledger:
            ledger.write(json.dumps(blow) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())


def write_plan(file: Path, plan: Plan) -> None:
    """Write a plan where the struck command finds it."""
    file.write_text(json.dumps(asdict(plan)))


def read_ledger(file: Path) -> list[dict[str, str]]:
    """Return the blows that have fallen so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _pending(checkpoint: Path) -> set[str]:
    latest = json.loads(checkpoint.read_bytes())["checkpoint"].get("latest") or {}
    operations = latest.get("pending_operations") or []
    return {f"{operation['type']} {_name(operation['resource'])}" for operation in operations}


def _name(resource: dict[str, Any]) -> str:
    return f"{resource['type'].rpartition(':')[2]} {resource['urn'].rpartition('::')[2]}"


def _neutral(path: str) -> str:
    """Return a path without what differs from run to run."""
    path = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", path)
    return re.sub(r"\d{6,}", "N", path)


def _hosts() -> list[int]:
    """Return this process's children that host dynamic providers."""
    lists = (file.read_text().split() for file in Path("/proc/self/task").glob("*/children"))
    pids = [int(pid) for found in lists for pid in found]
    return [pid for pid in pids if b"pulumi.dynamic" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main() -> None:
    """Run the command under the plan."""
    given = json.loads(Path(os.environ[VARIABLE]).read_text())
    plan = Plan(**{**given, "moments": tuple(given["moments"])})
    struck = {(blow["moment"], blow["step"]) for blow in read_ledger(Path(plan.ledger))}
    pending = _pending(Path(plan.checkpoint)) if Path(plan.checkpoint).exists() else set()
    sys.addaudithook(Striker(plan=plan, struck=struck, pending=pending))
    sys.argv[0] = "observatory"
    runpy.run_module("observatory", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
