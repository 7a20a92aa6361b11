"""Runs the command, and kills it with its whole process group at one exact step: `python -m tests.support.steps ...`.

A step is what the command reports as its progress, a program that it starts, or a file or directory that it renames or
removes; files and programs are seen through Python's audit events, so that the command has no hook for tests. The JSON
file that OBSERVATORY_STEP names has the blow (see `Blow`). A step that was struck is written down before.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from observatory.cli import terminal
from observatory.progress import Phase, Progress

VARIABLE = "OBSERVATORY_STEP"
FILES = ("os.rename", "os.remove", "os.symlink", "shutil.rmtree", "open")
KEPT = re.compile(r"\.(access|json|kept|lock)$")  # of the many removed or opened files only these are steps
PROGRAM = re.compile(r"/usr/(?:lib/postgresql/\d+/)?s?bin/(\w+)")
COMMANDS = {"pgbackrest": ("restore", "archive-get", "info", "verify"), "pg_ctl": ("promote", "stop", "status")}


@dataclass(frozen=True, kw_only=True)
class Blow:
    """Which step is struck, and when.

    Attributes:
        step: a regular expression; the first step that it matches is struck.
        after: not before the step, but when it has happened and the next one begins.
        linger: seconds after the step until the blow falls; 0: at once.
        struck: file that gets the name of the step.
    """

    step: str
    after: bool = False
    linger: float = 0.0
    struck: str

    def write(self, file: Path) -> None:
        """Write it where the struck command finds it."""
        Path(self.struck).unlink(missing_ok=True)
        file.write_text(json.dumps(asdict(self)))


@dataclass
class Striker:
    """Watches the command from inside, and strikes once."""

    blow: Blow
    found: bool = False
    due: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event; see https://docs.python.org/3/library/audit_events.html."""
        if step := step_of(event, arguments):
            self.on_step(step)

    def on_progress(self, progress: Progress) -> None:
        """Take a report of progress."""
        if progress.phase in {Phase.STARTED, Phase.MOVED, Phase.DONE}:
            detail = f": {progress.detail}" if progress.detail else ""
            self.on_step(f"{progress.phase} {progress.task}{detail}")

    def on_step(self, step: str) -> None:
        """Strike if it is the one."""
        with self.lock:
            if self.due:
                self.strike()
            if self.found or not re.search(self.blow.step, step):
                return
            self.found = True
            Path(self.blow.struck).write_text(step)
            if self.blow.linger:
                timer = threading.Timer(self.blow.linger, self.strike)
                timer.daemon = True
                timer.start()
            elif self.blow.after:
                self.due = True
            else:
                self.strike()

    def strike(self) -> None:
        """Kill the command's process group, as the end of its terminal would."""
        os.killpg(os.getpgrp(), signal.SIGKILL)


def step_of(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the step that an audit event is; empty for all else."""
    if event == "subprocess.Popen":
        return f"run {program(arguments[1])}"
    if event not in FILES:
        return ""
    given = arguments[1] if event in {"os.rename", "os.symlink"} else arguments[0]
    path = "" if isinstance(given, int) else os.fsdecode(given)  # an open file has no name
    if not path or (event in {"os.remove", "open"} and not KEPT.search(path)):
        return ""
    if event == "open" and not (arguments[2] & os.O_CREAT and path.endswith(".kept")):
        return ""
    name = "/".join(Path(path).parts[-2:])
    if event == "os.rename" and re.search(r"^rollbacks/.*\.json$", name):
        return f"record {json.loads(Path(arguments[0]).read_bytes())['phase']}"
    return f"{event.rpartition('.')[2]} {name}"


def program(argv: Any) -> str:
    """Return which program of the sandbox a command line runs, with its command."""
    words = [os.fsdecode(each) for each in argv] if not isinstance(argv, str | bytes) else [os.fsdecode(argv)]
    names = [match[1] for each in words if (match := PROGRAM.fullmatch(each))]
    if not names:
        return Path(words[0]).name
    commands = [each for each in words if each in COMMANDS.get(names[-1], ())]
    return " ".join([names[-1], *commands[:1]])


def main() -> None:
    """Run the command under the blow."""
    striker = Striker(Blow(**json.loads(Path(os.environ[VARIABLE]).read_text())))
    shown = terminal.ConsoleReporter.__call__

    def report(self: terminal.ConsoleReporter, progress: Progress) -> None:
        shown(self, progress)
        striker.on_progress(progress)

    terminal.ConsoleReporter.__call__ = report  # type: ignore[method-assign]
    sys.addaudithook(striker.on_event)
    sys.argv[0] = "observatory"
    try:
        runpy.run_module("observatory", run_name="__main__", alter_sys=False)
    finally:
        if striker.due:  # the step was the last one
            striker.strike()


if __name__ == "__main__":
    main()
