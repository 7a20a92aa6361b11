"""The kills of each command, and what must hold after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from observatory.backups.rollback.record import Phase
from proofs.killed_restores import lost_machine
from proofs.killed_restores.rows import LostRows
from proofs.killed_restores.victim import EMBEDDED, UP, Moment, Victim

ROLLBACK = ("rollback", "--method", "database", "--yes", *EMBEDDED)
UNDO = (*ROLLBACK, "--undo")
VERIFY = ("backup", "verify")
BACKUP_EVERY = 3  # rollbacks: otherwise there is more and more WAL to replay


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case; `run` yields what is not as promised."""

    name: str
    run: Callable[[Victim], Iterator[str]]


_PHASES = tuple(Moment(name=str(phase), step=f"^record {phase}$") for phase in Phase)
_ACCESS = Moment(name="roles and keys are kept", step=r"^rename rollbacks/.*\.access$")
_MIDST = tuple(
    Moment(name=f"the midst: {phase}", step=f"^record {phase}$", longest=longest)
    for phase, longest in ((Phase.STOP, 2.0), (Phase.START, 3.0), (Phase.UP, 3.0))
)
OF_ROLLBACK = (
    Moment(name="the backup is restored", step="^run pgbackrest restore", longest=1.0),
    Moment(name="WAL is replayed", step="^run postgres", longest=0.5),
    Moment(name="compare", step="^started compare with", longest=0.3),
    Moment(name="promotion beside the live data", step="^run pg_ctl promote"),
    Moment(name="the restored data is moved", step="^rename data/postgres-next-"),
    _ACCESS,
    *_PHASES,
    _MIDST[1],
)
OF_UNDO = (
    _ACCESS,
    *_PHASES,
    *(Moment(name="the midst of the promotion", step="^run postgres", longest=longest) for longest in (0.4, 0.8, 1.6)),
    *_MIDST,
)
OF_DRILL = (
    Moment(name="find", step="^started find the backup"),
    Moment(name="restore", step="^run pgbackrest restore", longest=1.0),
    Moment(name="start", step="^run postgres", longest=0.5),
    Moment(name="compare", step="^started compare with", longest=0.3),
    Moment(name="replay", step="^started replay WAL", longest=0.5),
    Moment(name="promote", step="^run pg_ctl promote"),
    Moment(name="read pages", step="^run pg_amcheck", longest=1.0),
    Moment(name="receipt", step=r"^rename .*/\d{8}T[\d.]+Z\.json$"),
)
OF_DUMP = (
    Moment(name="decrypt", step=r"^moved restore .*: decrypt$", longest=0.3),
    Moment(name="definitions", step=r"^moved restore .*: restore definitions$", longest=1.0),
    Moment(name="rows", step=r"^moved restore .*: restore rows$", longest=0.5),
    Moment(name="compare", step=r"^moved restore .*: compare the rows$"),
    Moment(name=str(Phase.AGREE), step=f"^record {Phase.AGREE}$"),
)
OF_CLONE = (
    Moment(name="find", step="^moved clone at .*: find the backup$"),
    Moment(name="restore", step="^run pgbackrest restore", longest=0.8),
    Moment(name="start", step="^run postgres", longest=0.5),
    Moment(name="link", step="^symlink .*observatory-flashback-"),
    Moment(name="description", step=r"^rename .*/clone\.json$"),
    Moment(name="mark", step=r"^open .*\.kept$"),
)
OF_RESTORE = (
    Moment(name="compare", step="^started restore missing rows", longest=0.3),
    Moment(name="staged", step="^moved restore missing rows"),
    Moment(name="insert", step="^moved restore missing rows", longest=0.3),
    Moment(name="inserted", step="^done restore missing rows", after=False),
)
OF_CLOSE = (
    Moment(name="processes end", step="^rmtree .*/flashback-", after=False),
    Moment(name="files are removed", step="^rmtree .*/flashback-"),
    Moment(name="mark is removed", step=r"^remove .*\.kept$"),
    Moment(name="lock is removed", step=r"^remove .*\.lock$"),
)


def cases(number: int) -> list[Case]:
    """Return the cases of a round; how each is recovered alternates from round to round."""
    exchanges = [
        Case(
            name=f"rollback killed at {kill.name}, undo killed at {undo.name}",
            run=partial(_exchanges, kill=kill, undo=undo, number=place + number),
        )
        for place, (kill, undo) in enumerate(zip(OF_ROLLBACK, OF_UNDO, strict=True))
    ]
    drills = [
        Case(name=f"drill killed at {each.name}", run=partial(_drill, moment=each, rerun=bool((place + number) % 2)))
        for place, each in enumerate(OF_DRILL)
    ]
    dumps = [Case(name=f"dump killed at {each.name}", run=partial(_dump, moment=each)) for each in OF_DUMP]
    clones = [
        Case(name=f"clone killed at {each.name}", run=partial(_clone, moment=each, rerun=bool((place + number) % 2)))
        for place, each in enumerate(OF_CLONE)
    ]
    rows = [
        Case(
            name=f"flashback killed at {restore.name}, close killed at {close.name}",
            run=partial(_rows, restore=restore, close=close),
        )
        for restore, close in zip(OF_RESTORE, OF_CLOSE, strict=True)
    ]
    return [*exchanges, *drills, *dumps, *clones, *rows, Case(name="lost machine", run=lost_machine.recovered)]


def _exchanges(victim: Victim, kill: Moment, undo: Moment, number: int) -> Iterator[str]:
    """Kill a rollback, end it, and kill its undo, and end that."""
    if number % BACKUP_EVERY == 0:
        victim.checkout.run("backup", "create")
    arguments = (*ROLLBACK, "--to-time", victim.rows.moment())
    yield from _exchange(victim, arguments, kill, restored=True, rerun=bool(number % 2))
    if not victim.rows.is_restored():
        victim.checkout.run(*arguments)
        yield from victim.rows.wrong(restored=True)
    yield from _exchange(victim, UNDO, undo, restored=False, rerun=bool(number // 2 % 2))
    if victim.rows.is_restored():
        victim.checkout.run(*UNDO)
        yield from victim.rows.wrong(restored=False)
    yield from _discarded(victim)


def _discarded(victim: Victim) -> Iterator[str]:
    """Check that the stack is well and its backups are whole, and remove what was set aside."""
    victim.wait_until_well()
    victim.checkout.run(*VERIFY)
    victim.checkout.run("backup", "discard", "--yes")
    yield from victim.left()
    kept = sorted(each.name for each in victim.checkout.home.glob("data/postgres*"))
    if kept != ["postgres"]:
        yield f"after `backup discard` there are {kept}"


def _exchange(
    victim: Victim, arguments: tuple[str, ...], moment: Moment, *, restored: bool, rerun: bool
) -> Iterator[str]:
    """Kill a rollback or its undo, and end it by the same command or by `up`; `restored`: what it leads to."""
    known = {each.id for each in victim.records}
    yield from victim.strike(moment, *arguments)
    begun = next((each for each in victim.records if each.id not in known), None)
    if begun is None:  # nothing has stopped the live database yet
        yield from victim.rows.wrong(restored=not restored)
    yield from _named(victim, None if begun is None or begun.finished else begun.id)
    if rerun and not (begun and begun.finished):
        victim.checkout.run(*arguments)
        yield from victim.rows.wrong(restored=restored)
    else:
        victim.checkout.run(*UP)
        given_up = begun is None or begun.phase is Phase.STOP
        yield from victim.rows.wrong(restored=restored is not given_up)
        victim.checkout.run(*VERIFY)  # the scheduler runs it every five minutes
    yield from victim.left()


def _named(victim: Victim, unfinished: str | None) -> Iterator[str]:
    """Check that `status` names an unfinished rollback, and no other."""
    found = victim.status()["database_rollback"]
    if (found["id"] if found else None) != unfinished:
        yield f"status names {found}, expected {unfinished}"


def _recovered(victim: Victim, arguments: tuple[str, ...], *, rerun: bool) -> Iterator[str]:
    """Run the command again, or what the scheduler does every five minutes; the live database is as it was."""
    yield from victim.rows.wrong(restored=False)
    victim.checkout.run(*(arguments if rerun else VERIFY))
    yield from victim.rows.wrong(restored=False)


def _drill(victim: Victim, moment: Moment, *, rerun: bool) -> Iterator[str]:
    victim.rows.moment()
    yield from victim.strike(moment, "backup", "restore-test")
    yield from _recovered(victim, ("backup", "restore-test"), rerun=rerun)
    yield from victim.left()


def _dump(victim: Victim, moment: Moment) -> Iterator[str]:
    """Kill a rollback to a dump; one that has exchanged the data is ended by the same command, and undone."""
    file = victim.directory / "made.dump"
    file.unlink(missing_ok=True)
    victim.rows.moment(lambda: victim.checkout.run("backup", "dump", str(file)))
    arguments = (*ROLLBACK, "--backup-file", str(file))
    if moment.name != Phase.AGREE:
        yield from victim.strike(moment, *arguments)
        yield from _recovered(victim, (), rerun=False)
        yield from victim.left()
        return
    yield from _exchange(victim, arguments, moment, restored=True, rerun=True)
    victim.checkout.run(*UNDO)
    yield from victim.rows.wrong(restored=False)
    yield from _discarded(victim)


def _clone(victim: Victim, moment: Moment, *, rerun: bool) -> Iterator[str]:
    opened = ("backup", "flashback", "--to-time", victim.rows.moment())
    yield from victim.strike(moment, *opened)
    yield from _recovered(victim, opened, rerun=rerun)
    found = victim.checkout.json("backup", "flashback", "list")
    if len(found) > 1 or (rerun and len(found) != 1):
        yield f"open are {found}"
    victim.checkout.run("backup", "flashback", "close", "--all")
    yield from victim.left()


def _rows(victim: Victim, restore: Moment, close: Moment) -> Iterator[str]:
    """Kill a restore of missing rows, run it again, and kill the close of its clone."""
    lost = LostRows(victim)
    time = victim.rows.moment()
    lost.delete()
    clone = victim.checkout.json("backup", "flashback", "--to-time", time)["clone"]["name"]
    again = ("backup", "flashback", "--to-time", time, "--table", lost.table, "--restore-missing")
    yield from victim.strike(restore, *again)
    yield from lost.wrong(restored=None)
    victim.checkout.run(*again)
    yield from lost.wrong(restored=True)
    yield from victim.rows.wrong(restored=False)
    yield from victim.strike(close, "backup", "flashback", "close", clone)
    if any(each["name"] == clone for each in victim.checkout.json("backup", "flashback", "list")):
        victim.checkout.run("backup", "flashback", "close", clone)
    victim.checkout.run(*VERIFY)
    yield from victim.rows.wrong(restored=False)
    yield from victim.left()
