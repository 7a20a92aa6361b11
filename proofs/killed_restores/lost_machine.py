"""A lost machine is recovered in another checkout, and the recovery is killed at each step, one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from observatory.database import connect
from observatory.database.connection import with_database
from observatory.errors import REFUSED
from proofs.acknowledged import ids
from proofs.killed_restores import victim as of
from tests.support.checkout import UP_TIMEOUT_S

if TYPE_CHECKING:
    from proofs.killed_restores.victim import Victim
    from tests.support.checkout import Checkout

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of a key file that is removed
MOMENTS = (
    of.Moment(name="read", step="^moved recover the database: read"),
    of.Moment(name="copy", step="^moved recover the database: copy", longest=0.2),
    of.Moment(name="restore", step="^run pgbackrest restore", longest=1.0),
    of.Moment(name="replay", step="^run postgres", longest=0.5),
    of.Moment(name="promoted", step="^run pg_ctl stop"),
    of.Moment(name="archive", step="^moved recover the database: archive", longest=0.5),
    of.Moment(name="home is complete", step="^rename stacks/local$", after=False),
    of.Moment(name="home is in place", step="^rename stacks/local$"),
)


def recovered(victim: Victim) -> Iterator[str]:
    """Kill the recovery at each moment, run it again, and bring the recovered stack up."""
    keys, passphrase, copy = (victim.directory / name for name in ("keys.age", "passphrase", "copy"))
    passphrase.write_text(PASSPHRASE)
    victim.checkout.run("backup", "key", "export", str(keys), "--passphrase-file", str(passphrase))

    def lose() -> None:
        victim.checkout.run("backup", "create")  # archives all WAL until then
        shutil.copytree(victim.checkout.home / "data/backups", copy, symlinks=True)

    victim.rows.moment(lose)
    other = of.a_checkout(victim.directory / "other")
    restore = ("bootstrap", "--restore-from", str(copy), "--key-file", str(keys), "--passphrase-file", str(passphrase))
    try:
        for moment in MOMENTS:
            yield from victim.strike(moment, *restore, checkout=other)
            yield from _ended(other, complete=moment is MOMENTS[-1])
        refused = other.start(*restore)
        _, said = refused.communicate(timeout=UP_TIMEOUT_S)
        if refused.returncode != REFUSED or "`observatory up` starts it" not in said:
            yield f"a recovery that has ended is not refused with the way on: {said}"
        other.run(*of.UP)
        with connect(with_database(other.output("admin_database_url"), "observatory"), purpose="proof") as connection:
            if ids(connection) != victim.rows.base:
                yield "the recovered database has other rows"
        other.run("backup", "verify")
        yield from victim.left(other)
        yield from victim.rows.wrong(restored=False)
    finally:
        other.kill_all()
        shutil.rmtree(other.root, ignore_errors=True)
        for each in (keys, copy):
            shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)


def _ended(other: Checkout, *, complete: bool) -> Iterator[str]:
    """Check that a killed recovery has no process, and a home only if that is complete."""
    if not of.wait_for_end(other):
        yield f"processes of the recovery are left: {of.strangers(other)}"
    if other.home.exists() != complete:
        yield f"the home {'is missing' if complete else 'exists'} after the kill"
