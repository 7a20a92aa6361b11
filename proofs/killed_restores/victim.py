"""A stack whose restores are killed, and what must hold after a kill."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observatory.backups.rollback.record import RollbackRecord, RollbackRecords
from observatory.database.connection import with_database
from observatory.runtime import Sandbox
from observatory.waiting import wait_until
from observatory.workspace import Workspace
from proofs.acknowledged import Acknowledged
from tests.support.checkout import SOURCE, UP_TIMEOUT_S, Checkout
from tests.support.crash import leftovers, run_under
from tests.support.steps import VARIABLE, Blow
from tests.support.waiting import until

EMBEDDED = ("--engine", "embedded")
UP = ("up", *EMBEDDED)
QUIET_S = 60.0  # how long what a killed command had begun may take to end
WELL_S = 300.0
RESIDENT = re.compile(r"observatory( scheduler|\.scheduling\.|\.console)")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a command is killed.

    Attributes:
        name: in the words of a report.
        step: a regular expression of the step.
        after: when the step has happened, not before it.
        longest: the longest time from the step to the kill, in seconds; it is drawn. 0: at the step.
    """

    name: str
    step: str
    after: bool = True
    longest: float = 0.0


@dataclass(kw_only=True)
class Victim:
    """The stack.

    Attributes:
        checkout: of the stack.
        directory: for files of the proof.
        rows: writes meanwhile, and has what must be in the database.
        draw: decides what is at random.
        struck: the steps at which commands of this case were killed.
    """

    checkout: Checkout
    directory: Path
    rows: Acknowledged
    draw: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - repeatable
    struck: list[str] = field(default_factory=list)

    def strike(self, moment: Moment, *arguments: str, checkout: Checkout | None = None) -> Iterator[str]:
        """Run a command until it is killed at a moment; yield a problem if it came to its end before."""
        plan, note = self.directory / "blow.json", self.directory / "struck"
        linger = self.draw.uniform(0.01, moment.longest) if moment.longest else 0.0
        Blow(step=moment.step, after=moment.after, linger=linger, struck=str(note)).write(plan)
        code, said = run_under(checkout or self.checkout, "tests.support.steps", arguments, {VARIABLE: str(plan)})
        self.struck.append(f"{arguments[0]}: {moment.name}")
        if not note.exists():
            yield f"{' '.join(arguments)} never came to {moment.name}, and ended with {code}: {said}"
        elif code != -signal.SIGKILL and not (moment.longest and code == 0):
            yield f"{' '.join(arguments)}, struck at {moment.name}, ended with {code}: {said}"

    @property
    def records(self) -> list[RollbackRecord]:
        """The records of rollbacks, oldest first."""
        return RollbackRecords(self.checkout.home).all()

    def settle(self) -> None:
        """Bring the stack up, with the database of before."""
        self.checkout.run(*UP)
        if self.rows.is_restored():
            self.checkout.run("rollback", "--method", "database", "--undo", "--yes", *EMBEDDED)
        self.checkout.exit_code("backup", "flashback", "close", "--all")
        self.checkout.run("backup", "discard", "--yes")

    def wait_until_well(self) -> None:
        """Wait until `status` finds nothing."""
        until(lambda: self.checkout.exit_code("status") == 0, "the stack to be well", timeout_s=WELL_S, pause_s=1)

    def status(self) -> Any:
        """Return what `status` says, also of an ill stack."""
        process = self.checkout.start("status", "--output", "json")
        return json.loads(process.communicate(timeout=UP_TIMEOUT_S)[0])

    def left(self, checkout: Checkout | None = None) -> Iterator[str]:
        """Yield what a killed command has left, now that the next one has ended."""
        checked = checkout or self.checkout
        wait_until(
            lambda: not _files_left(checked), QUIET_S, interval_s=0.5
        )  # those of the scheduler's jobs do not stay
        yield from (f"{each} is left" for each in _files_left(checked))
        if not wait_for_end(checked):
            yield from (f"process {pid} is left: {_command(pid)}" for pid in strangers(checked))


def wait_for_end(checkout: Checkout) -> bool:
    """Wait until no process of a checkout is left but the daemons of its stack; return whether that is so."""
    return wait_until(lambda: not strangers(checkout), QUIET_S, interval_s=0.5)


def strangers(checkout: Checkout) -> list[int]:
    """Return the processes of a checkout that are no daemon of its stack, and none of the host that lives as long."""
    sandbox = Sandbox(checkout.home, Path(checkout.environment["OBSERVATORY_ROOTFS"]))
    found = checkout.processes() - set(sandbox.members())
    return sorted(pid for pid in found if not RESIDENT.search(_command(pid)))


def _files_left(checkout: Checkout) -> list[str]:
    home, links = checkout.home, Path(tempfile.gettempdir()).glob("observatory-flashback-*")
    found = [
        *home.glob("data/restore/*"),
        *home.glob("data/postgres-next-*"),
        *home.glob("lock/restored-*"),
        *home.glob("rollbacks/*.access"),
        *(each for each in links if _leads_into(each, home)),
    ]
    return [*map(str, found), *leftovers(checkout)]


def _leads_into(link: Path, home: Path) -> bool:
    return link.is_symlink() and link.readlink().is_relative_to(home)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def a_checkout(root: Path) -> Checkout:
    """Return a copy of the checkout."""
    root.mkdir()
    return Checkout.copy(root, rootfs=Workspace(root=SOURCE, stack="local").ensure_rootfs())


@contextlib.contextmanager
def a_victim(directory: Path) -> Iterator[Victim]:
    """Yield a stack under writes."""
    checkout = a_checkout(directory / "checkout")
    try:
        checkout.run(*UP)
        conninfo = with_database(checkout.output("admin_database_url"), "observatory")
        with Acknowledged(conninfo) as rows:
            yield Victim(checkout=checkout, directory=directory, rows=rows)
    finally:
        checkout.kill_all()
