"""Exchanges the data directory of the stack's PostgreSQL, in steps that a killed command cannot harm.

    stop → set the live data aside → (promote) → put the other data in → start → roles and API keys

Each step is recorded before it begins and may be repeated. Until the live data is set aside, an unfinished exchange is
given up; from then on it is finished. Between the two renames there is no data directory: Patroni then waits, because
its configuration store has the cluster's identifier, and creates none.

Does not own how the other data is restored and verified, nor the rollout document (`observatory.operations`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from observatory.backups.rollback.errors import DatabaseRollbackError, RollbackRefusedError
from observatory.backups.rollback.record import ACCESS, Phase, RollbackRecord, RollbackRecords
from observatory.backups.rollback.timelines import DataDirectory
from observatory.database.connection import with_database
from observatory.database.ping import is_writable
from observatory.database.presence import SERVER_DATABASE
from observatory.database.roles.kept_access import KeptAccess, apply_access
from observatory.files.atomic import remove, write_file
from observatory.nodes import Paths
from observatory.nodes.patroni_store import forget_leader_command
from observatory.nodes.pgbackrest import BIN
from observatory.nodes.pooler_console import pause, resume
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings
from observatory.waiting import wait_until

PATRONI = "patroni"
LIVE = "postgres"  # the directory below `data`
STOP_SECONDS = 60
START_SECONDS = 90.0  # crash recovery of a busy server is not included: the data that comes in was shut down
STORE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Swap:
    """The exchange on one stack.

    Attributes:
        sandbox: of the stack.
        settings: of the stack.
        records: of its rollbacks.
        administrator: connection string of the superuser to the stack's database.
    """

    sandbox: Sandbox
    settings: LocalSettings
    records: RollbackRecords
    administrator: str

    def remove_left_over(self) -> None:
        """Remove what a command has left that was killed after it had prepared data, and before it recorded that."""
        for file in self.records.left_over():
            remove(file)

    def check_set_aside(self, record: RollbackRecord) -> None:
        """Check that an undo can bring back what a rollback has set aside: files may have been removed by hand.

        Raises:
            RollbackRefusedError: it cannot.
        """
        try:
            self.directory(record.outgoing).check_usable()
        except DatabaseRollbackError as error:
            raise RollbackRefusedError(
                f"the data that the rollback {record.id} has set aside cannot be used: {error.args[0]}; nothing was "
                "changed",
                remedy="Put back what is missing, or roll back to a time: --to-time.",
            ) from error

    def take_in(self, restored: Path, record: RollbackRecord) -> None:
        """Move a restored data directory of the same file system to where the exchange finds it."""
        _rename(restored, self._data(record.incoming))

    def begin(self, record: RollbackRecord, access: KeptAccess) -> RollbackRecord:
        """Exchange the data and start the database; return the record, which is to be agreed on.

        Args:
            record: of the exchange; the data that comes in is in its place.
            access: roles, passwords and API keys that the database is to have afterwards.

        Raises:
            RollbackRefusedError: the live server has another timeline since; the live data runs again.
            DatabaseRollbackError: a step failed. Where the live data is still in its place, it runs again.
        """
        self._write_access(record, access)
        record = self.records.write(record)
        try:
            self._stop(record)
        except BaseException:
            self.abandon(record)
            raise
        return self.finish(self.records.write(record.changed(phase=Phase.SET_ASIDE)))

    def finish(self, record: RollbackRecord) -> RollbackRecord:
        """Do what is left of an exchange that has set the live data aside, or may have."""
        steps = {
            Phase.SET_ASIDE: self._set_aside,
            Phase.PROMOTE: self._promote,
            Phase.PUT_IN: self._put_in,
            Phase.START: self._start,
            Phase.ACCESS: self._restore_access,
        }
        phases = list(Phase)
        while record.phase in steps:
            steps[record.phase](record)
            record = self.records.write(record.changed(phase=phases[phases.index(record.phase) + 1]))
        return record

    def abandon(self, record: RollbackRecord) -> None:
        """Run the live data again, which is still in its place, and remove what was to come in."""
        self._run_patroni()
        resume(self.sandbox.run, Paths(), self.settings.ports.pgbouncer)
        if record.kind == "rollback":
            remove(self._data(record.incoming))
        self._access_file(record).unlink(missing_ok=True)
        self.records.remove(record)

    def _stop(self, record: RollbackRecord) -> None:
        """Let running transactions end, keep clients waiting, and shut the database down."""
        pause(self.sandbox.run, Paths(), self.settings.ports.pgbouncer)
        self._stop_patroni()
        timeline = self.directory(LIVE).control().timeline
        if record.timeline not in (None, timeline):
            raise RollbackRefusedError(
                f"the live database has changed from timeline {record.timeline} to {timeline} since the restored data "
                "was promoted; it runs again as before",
                remedy="Run the command again.",
            )

    def _stop_patroni(self) -> None:
        self.sandbox.supervisor.stop(PATRONI)
        if not (self._data(LIVE) / "postmaster.pid").exists():
            return
        # Of a Patroni that was killed before, PostgreSQL may still run.
        control = (f"{BIN}/pg_ctl", "-D", f"{Paths().data}/{LIVE}")
        self.sandbox.run((*control, "-m", "fast", "-w", "-t", str(STOP_SECONDS), "stop"), check=False)
        if self.sandbox.run((*control, "status"), check=False).returncode == 0:
            raise DatabaseRollbackError(
                f"PostgreSQL did not end within {STOP_SECONDS} s", remedy="See `observatory logs patroni`."
            )

    def _set_aside(self, record: RollbackRecord) -> None:
        live, aside = self._data(LIVE), self._data(record.outgoing)
        if live.exists():
            if aside.exists():
                raise self._unexpected(record, f"{live} and {aside} both exist")
            self._stop_patroni()  # the supervisor may have been started since
            _rename(live, aside)

    def _promote(self, record: RollbackRecord) -> None:
        if record.timeline is None and self._data(record.incoming).exists():
            incoming = self.directory(record.incoming)
            newest = self.directory(record.outgoing).control().timeline
            incoming.promote(newest)
            incoming.archive_later(newest)

    def _put_in(self, record: RollbackRecord) -> None:
        live, incoming = self._data(LIVE), self._data(record.incoming)
        if incoming.exists():
            if live.exists():
                raise self._unexpected(record, f"{live} and {incoming} both exist")
            _rename(incoming, live)
        elif not live.exists():
            raise self._unexpected(record, f"neither {live} nor {incoming} exists")

    def _start(self, record: RollbackRecord) -> None:  # noqa: ARG002 - every step has it
        self.sandbox.start()
        forget = forget_leader_command(Paths(), self.settings.ports.etcd_client)
        if not wait_until(lambda: self._runs(*forget), STORE_SECONDS, interval_s=0.5):
            raise DatabaseRollbackError(
                "etcd does not answer, so Patroni cannot start the database", remedy="See `observatory logs etcd`."
            )
        self._run_patroni()

    def _runs(self, argv: tuple[str, ...], stdin: str) -> bool:
        return self.sandbox.run(argv, stdin=stdin, check=False).returncode == 0

    def _run_patroni(self) -> None:
        self.sandbox.supervisor.start(PATRONI)
        # Not Patroni's /primary, which succeeds as soon as it has the leader's lock, and not the stack's database,
        # which may have been dropped.
        if not wait_until(partial(is_writable, with_database(self.administrator, SERVER_DATABASE)), START_SECONDS):
            raise DatabaseRollbackError(
                f"the database is not ready after {START_SECONDS:.0f} s",
                remedy="See `observatory logs patroni`. Run the command again: it goes on from here.",
            )

    def _restore_access(self, record: RollbackRecord) -> None:
        file = self._access_file(record)
        if file.exists():
            apply_access(self.administrator, KeptAccess.model_validate_json(file.read_bytes()))
        resume(self.sandbox.run, Paths(), self.settings.ports.pgbouncer)
        file.unlink(missing_ok=True)

    def _write_access(self, record: RollbackRecord, access: KeptAccess) -> None:
        self.records.directory.mkdir(mode=0o700, exist_ok=True)
        write_file(self._access_file(record), access.model_dump_json(by_alias=True))

    def _access_file(self, record: RollbackRecord) -> Path:
        """Return the file with the verifiers of passwords; it exists during the exchange only."""
        return self.records.directory / f"{record.id}{ACCESS}"

    def directory(self, name: str) -> DataDirectory:
        """Return the data directory of a name below `data`."""
        return DataDirectory(self.sandbox, f"{Paths().data}/{name}")

    def _data(self, name: str) -> Path:
        return self.sandbox.host_path(f"{Paths().data}/{name}")

    def _unexpected(self, record: RollbackRecord, found: str) -> DatabaseRollbackError:
        return DatabaseRollbackError(
            f"the rollback {record.id} cannot {record.phase}: {found}",
            remedy=f"Nothing was removed. The live data of before is in {self._data(record.outgoing)} or {LIVE}.",
        )


def _rename(source: Path, target: Path) -> None:
    """Rename a directory, and have the names on disk before anything else happens."""
    source.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
