"""The record of each rollback of the database: which directories are exchanged, and how far that is.

It is a file in the stack's home, beside the data and out of the daemons' reach, and written before each step. So a
rollback whose command was killed is continued by the next command.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observatory.backups.dump_manifest import CronJob
from observatory.backups.rollback.errors import DatabaseRollbackError
from observatory.documents.validation import problems
from observatory.files.atomic import abandoned, write_file
from observatory.settings import FleetName

DIRECTORY = "rollbacks"  # in the stack's home
INCOMING = "postgres-next-"  # of a directory with restored data, below the stack's `data`
ACCESS = ".access"  # of the name of a file with roles, passwords and API keys, beside the record
TIME = "%Y%m%d-%H%M%S"  # begins an id
ID = r"^\d{8}-\d{6}-[0-9a-f]{4}$"


class Phase(StrEnum):
    """What a rollback is about to do; in this order. Until `SET_ASIDE` the live data is in its place."""

    STOP = "stop the database"
    SET_ASIDE = "set the live data aside"
    PROMOTE = "promote the data that comes in"
    PUT_IN = "put the data in"
    START = "start the database"
    ACCESS = "restore roles, passwords and API keys"
    AGREE = "agree on the schema"
    UP = "bring the stack up"
    DONE = "done"


class RollbackRecord(BaseModel):
    """One exchange of the data directory.

    Attributes:
        id: of the rollback; the directories have it in their names.
        kind: `undo` brings the data back that an earlier rollback has set aside.
        phase: what is about to be done.
        target: what the data was restored to, as text; of an undo: the id of the rollback.
        source: where the data came from, as text.
        from_dump: whether that is a dump, which is restored without pg_cron.
        cron_jobs: of pg_cron, which that dump has in its manifest.
        actor: who rolls back.
        reason: for the record.
        at: when it began, in UTC.
        timeline: of the live data when the data that comes in was promoted; None: it is promoted when the live data is
            set aside.
        schema_before: version of the live schema.
        schema_after: version of the schema that comes in.
        schema_target: of the rollout document from now on.
        former_target: of the rollout document before.
        applied: numbers of the migrations that the live database had; none where it was dropped, and of an undo.
        contracted: those of them that the database that comes in lacks, and that remove something.
        stopped: fleets without traffic whose version does not fit the schema that comes in.
        started: fleets that the rollback had stopped, and that its undo starts again.
        lost_transactions: that only the live data had; None where that is not known, as of an undo.
        lost_rows: likewise, and of a database that was dropped or emptied; without those of what is unreadable.
        unreadable: tables of the live data that could not be read, and so were not compared.
        was_dropped: whether the live database was gone or had no migrations: no stack comes up with what is set aside.
        undone: whether an undo has brought the earlier data back.
        discarded: whether the data that was set aside was removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    id: Annotated[str, Field(pattern=ID)]
    kind: Literal["rollback", "undo"]
    phase: Phase = Phase.STOP
    target: str
    source: str
    from_dump: bool = False
    cron_jobs: tuple[CronJob, ...] = ()
    actor: str
    reason: str
    at: datetime
    timeline: int | None = None
    schema_before: int
    schema_after: int
    schema_target: int | None = None
    former_target: int | None = None
    applied: tuple[int, ...] = ()
    contracted: tuple[int, ...] = ()
    stopped: tuple[FleetName, ...] = ()
    started: tuple[FleetName, ...] = ()
    lost_transactions: int | None = None
    lost_rows: int | None = None
    unreadable: tuple[str, ...] = ()
    was_dropped: bool = False
    undone: bool = False
    discarded: bool = False

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.phase is Phase.DONE

    @property
    def exchanged(self) -> bool:
        """Whether the data is exchanged and agreed on; at most the stack is to be brought up."""
        return self.phase in {Phase.UP, Phase.DONE}

    @property
    def incoming(self) -> str:
        """Name of the directory that comes in, below the stack's `data`."""
        return f"postgres-before-{self.target}" if self.kind == "undo" else f"{INCOMING}{self.id}"

    @property
    def outgoing(self) -> str:
        """Name that the live directory gets when it is set aside."""
        return f"postgres-undone-{self.target}" if self.kind == "undo" else f"postgres-before-{self.id}"

    def changed(self, **changes: Any) -> Self:
        """Return the record with some attributes changed."""
        return self.model_copy(update=changes)


class RollbackRecords:
    """The records of one stack.

    Attributes:
        directory: of the files.
    """

    def __init__(self, home: Path) -> None:
        self.directory = home / DIRECTORY

    def all(self) -> list[RollbackRecord]:
        """Return the records, oldest first.

        Raises:
            DatabaseRollbackError: a record is damaged.
        """
        return [self._read(file) for file in sorted(self.directory.glob("*.json"))]

    def new_id(self) -> str:
        """Return an id that comes after all others, also after those of a clock that was ahead: it gives the order."""
        now = datetime.now(UTC)
        following = (datetime.strptime(f"{each.id[:15]}Z", f"{TIME}%z") + timedelta(seconds=1) for each in self.all())
        return f"{max((now, *following)):{TIME}}-{secrets.token_hex(2)}"

    def unfinished(self) -> RollbackRecord | None:
        """Return the rollback whose command has not finished it."""
        return next((each for each in self.all() if not each.finished), None)

    def last(self) -> RollbackRecord | None:
        """Return the newest rollback that is not undone and whose earlier data is still there."""
        kept = [each for each in self.all() if each.kind == "rollback" and each.finished]
        return next((each for each in reversed(kept) if not (each.undone or each.discarded)), None)

    def left_over(self) -> list[Path]:
        """Return what a command has left that was killed after it had prepared data, and before it recorded that."""
        known = {name for each in self.all() for name in (each.incoming, f"{each.id}{ACCESS}")}
        found = (*self.directory.parent.glob(f"data/{INCOMING}*"), *self.directory.glob(f"*{ACCESS}"))
        return [*(file for file in found if file.name not in known), *abandoned(self.directory)]

    def write(self, record: RollbackRecord) -> RollbackRecord:
        """Write a record to disk, and return it."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        write_file(self.directory / f"{record.id}.json", record.model_dump_json(indent=2), essential=True)
        return record

    def end(self, record: RollbackRecord) -> RollbackRecord:
        """Record that a rollback is done, and of an undo that its rollback is undone."""
        for each in self.all():
            if record.kind == "undo" and each.id == record.target:
                self.write(each.changed(undone=True))
        return self.write(record.changed(phase=Phase.DONE))

    def remove(self, record: RollbackRecord) -> None:
        """Remove the record of a rollback that changed nothing."""
        (self.directory / f"{record.id}.json").unlink(missing_ok=True)

    def _read(self, file: Path) -> RollbackRecord:
        try:
            record = RollbackRecord.model_validate_json(file.read_bytes())
        except ValidationError as error:
            reason = problems(error)
        else:
            if record.id == file.stem:
                return record
            reason = f"its id is {record.id}"
        raise DatabaseRollbackError(
            f"{file}: not the record of a rollback ({reason})",
            remedy=f"Compare the directories {self.directory.parent}/data/postgres* and restore the record, or remove "
            "it if `observatory status` shows the database ready.",
        )
