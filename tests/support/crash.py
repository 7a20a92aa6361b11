"""A chain of crashes: one command is struck again and again, each time a step further, until it comes to its end.

Owns the chain, and what must hold after each blow. Which moments there are is `tests.support.blow`'s.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from observatory.engines import embedded as engine
from observatory.runtime import Sandbox
from tests.support.blow import VARIABLE, Plan, read_ledger, write_plan
from tests.support.checkout import UP_TIMEOUT_S, Checkout

POSTMASTER = b"/usr/lib/postgresql/17/bin/postgres "  # its children have titles of their own
QUIET_S = 120.0  # how long what a dead command had begun may take to end on a busy machine
INTERRUPTED = 130


@dataclass(kw_only=True)
class Chain:
    """Strikes `observatory ARGUMENTS`, by each signal in turn, until it comes through.

    Every broken promise ends up in `broken`.
    """

    checkout: Checkout
    arguments: tuple[str, ...]
    plan: Plan
    signals: tuple[str, ...]
    blows: list[dict[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> Chain:
        """Strike until no moment of the plan is left."""
        begun = time.monotonic()
        while self._struck():
            pass
        self.seconds = time.monotonic() - begun
        return self

    def _struck(self) -> bool:
        """Run the command once; return whether it was struck."""
        file = Path(self.plan.ledger).with_suffix(".plan")
        write_plan(file, replace(self.plan, signal=self.signals[len(self.blows) % len(self.signals)]))
        before = len(read_ledger(Path(self.plan.ledger)))
        code, said = strike(self.checkout, self.arguments, file)
        fallen = read_ledger(Path(self.plan.ledger))[before:]
        self.blows += fallen
        where = (
            f"{' '.join(self.arguments)}, struck at {fallen[-1]}" if fallen else f"{' '.join(self.arguments)}, alone"
        )
        expected = self._expected(fallen[-1]) if fallen else {0}
        problems = [] if code in expected else [f"exit code {code}, expected {sorted(expected)}"]
        problems += ["a traceback was shown"] if "Traceback" in said else []
        problems += after_a_blow(self.checkout, file)
        if problems:
            self.broken.append(f"{where}: {'; '.join(problems)}\n{said}")
        return bool(fallen) and len(self.broken) < 5

    def _expected(self, blow: dict[str, str]) -> set[int]:
        if self.plan.target == "host":
            return {0, 1}  # between two steps nobody needs it
        ended = {-signal.SIGKILL} if blow["signal"] == "SIGKILL" else {INTERRUPTED}
        return ended | {0} if blow["moment"] == "working" else ended  # which may have come to its end meanwhile


def plan_for(checkout: Checkout, name: str, **choices: Any) -> Plan:
    """Return a plan for a checkout's stack, with a ledger of its own."""
    directory = checkout.root / ".observatory"
    return Plan(
        checkpoint=str(checkpoint(checkout)),
        directory=f"{directory}/",
        ledger=str(checkout.root.parent / f"{checkout.root.name}-{name}.blows"),
        **choices,
    )


def strike(checkout: Checkout, arguments: tuple[str, ...], plan: Path) -> tuple[int, str]:
    """Run the command under a plan; return its exit code and what it said."""
    return run_under(checkout, "tests.support.blow", arguments, {VARIABLE: str(plan)})


def run_under(
    checkout: Checkout, module: str, arguments: tuple[str, ...], environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run the command by a module that disturbs it, in a session of its own; return its exit code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=checkout.root,
        env={**os.environ, **checkout.environment, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said, _ = process.communicate(timeout=UP_TIMEOUT_S)
    return process.returncode, said


def after_a_blow(checkout: Checkout, plan: Path) -> list[str]:
    """Return what is not as it must be after any end of a command."""
    return [*_state(checkout), *_commands(plan), *_doubles(checkout)]


def checkpoint(checkout: Checkout) -> Path:
    """Return the stack's state file."""
    return checkout.root / ".observatory/backend/.pulumi/stacks/llm-observatory/local.json"


def options(checkout: Checkout) -> engine.StackOptions:
    """Return what the engine needs to read the stack's state with its secrets."""
    home = checkout.root / ".observatory"
    passphrase = (home / "passphrase").read_text()
    return engine.StackOptions(cwd=checkout.root, stack="local", backend=home / "backend", passphrase=passphrase)


def _state(checkout: Checkout) -> list[str]:
    """Check that the state is whole: readable with its secrets, each resource once, and after all that it needs."""
    file = checkpoint(checkout)
    if not file.exists():
        return []
    try:
        engine.outputs(options(checkout), show_secrets=True)
        resources = json.loads(file.read_bytes())["checkpoint"]["latest"].get("resources") or []
    except Exception as error:
        return [f"the state cannot be read: {type(error).__name__}: {error}"]
    problems, known = [], set[str]()
    for resource in resources:
        needed = {resource.get("parent"), resource.get("deletedWith"), *resource.get("dependencies", ())} - {None, ""}
        if missing := needed - known:
            problems.append(f"the state has {resource['urn']} before {sorted(missing)}")
        if resource["urn"] in known and not resource.get("delete"):
            problems.append(f"the state has {resource['urn']} twice")
        known.add(resource["urn"])
    return problems


def _commands(plan: Path) -> list[str]:
    """Check that nothing is left of the command: every process that it starts has the plan in its environment.

    But the daemons, whose environment is the sandbox's.
    """
    deadline = time.monotonic() + QUIET_S
    while (left := _with(f"{VARIABLE}={plan}".encode())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [f"still runs: {pid} {_command(pid)!r}" for pid in left]


def _with(variable: bytes) -> list[int]:
    return [pid for pid in _pids() if variable in _read(pid, "environ").split(b"\0")]


def _doubles(checkout: Checkout) -> list[str]:
    """Check that no daemon runs twice, the supervisor and PostgreSQL among them."""
    home = checkout.root / ".observatory/stacks/local"
    members = Sandbox(home, Path(checkout.environment["OBSERVATORY_ROOTFS"])).members()
    commands = {pid: _command(pid) for pid in members}
    supervisors = [pid for pid, command in commands.items() if b"/usr/bin/supervisord" in command]
    postmasters = [pid for pid, command in commands.items() if command.startswith(POSTMASTER)]
    programs = Counter(
        variable.partition(b"=")[2].decode()
        for pid in members
        if _parent(pid) in supervisors
        for variable in _read(pid, "environ").split(b"\0")
        if variable.startswith(b"OBSERVATORY_PROGRAM=")
    )
    schedulers = [pid for pid in _pids() if _runs_scheduler(pid, checkout)]
    problems = [f"{len(supervisors)} supervisors"] if len(supervisors) > 1 else []
    problems += [f"{len(schedulers)} schedulers"] if len(schedulers) > 1 else []
    problems += [f"{len(postmasters)} postmasters"] if len(postmasters) > 1 else []
    return problems + [f"{name} runs {count} times" for name, count in programs.items() if count > 1]


def _runs_scheduler(pid: int, checkout: Checkout) -> bool:
    if b"observatory scheduler --environment" not in _command(pid):  # a run of a job has more arguments
        return False
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == checkout.root
    except OSError:
        return False


def postmasters(checkout: Checkout) -> list[int]:
    """Return the postmasters of a checkout's stack."""
    return [pid for pid in checkout.processes() if _command(pid).startswith(POSTMASTER)]


def leftovers(checkout: Checkout) -> list[str]:
    """Return the files below .observatory that are the beginnings of others, left by commands that died."""
    top = checkout.root / ".observatory"
    skip = ("stacks/local/data/", "backend/.pulumi/history/")
    # Not `rglob`, which raises where a directory of a running daemon is gone meanwhile.
    found = (Path(place, name) for place, below, files in os.walk(top) for name in (*below, *files))
    names = (str(path.relative_to(top)) for path in found)
    return sorted(name for name in names if not name.startswith(skip) and re.search(r"partial|\.removed-", name))


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> bytes:
    return _read(pid, "cmdline").replace(b"\0", b" ")


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0
