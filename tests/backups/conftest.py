"""A PostgreSQL that archives with pgBackRest into a repository of its own: the stack's files, without the stack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from observatory.backups import recording
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.repository_places import use_places
from observatory.backups.tool import BackupType
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import (
    BIN,
    REPOSITORIES,
    archive_command,
    cipher_file,
    cipher_section,
    command,
    outside_directories,
    pgbackrest_directories,
    pgbackrest_files,
    repository,
    settings_file,
)
from observatory.runtime import Probe, Program, Sandbox
from observatory.settings import LocalSettings, Ports
from observatory.settings.local import BackupRepository, LocalBackups
from observatory.waiting import wait_until
from tests.support.ports import free_ports

PATHS = Paths()
DATA = f"{PATHS.data}/postgres"
SEGMENT_MB = 1  # not PostgreSQL's default: the size of a segment decides which name follows
PATIENCE_S = 120
PASSPHRASES = {1: "a passphrase", 2: "another passphrase"}


@dataclass
class ArchivingServer:
    """A server in a sandbox; `repository` is its first backup repository on the host, `repositories` the settings."""

    sandbox: Sandbox
    port: int
    repositories: tuple[BackupRepository, ...] = ()

    @property
    def tool(self) -> PgBackRest:
        return PgBackRest(self.sandbox)

    @property
    def repository(self) -> Path:
        return self.sandbox.host_path(repository(PATHS))

    @property
    def archive(self) -> Path:
        """The directory of the archived WAL of the newest database system."""
        return max(self.repository.glob("archive/observatory/17-*"))

    def segments(self) -> list[Path]:
        return sorted(file for file in self.archive.glob("*/*") if file.suffix == ".zst")

    def create(self) -> None:
        """Initialise and start the server."""
        options = (f"--wal-segsize={SEGMENT_MB}", "--data-checksums", "--no-sync", "--auth=trust", "-U", "postgres")
        settings = LocalSettings(ports=Ports(postgres=self.port), backups=LocalBackups(repositories=self.repositories))
        use_places(self.sandbox, outside_directories(settings))
        for path, text in pgbackrest_files(settings, PATHS).items():
            self.sandbox.write_file(path, text)
        for number in REPOSITORIES:
            self.sandbox.write_file(cipher_file(PATHS, number), cipher_section(PASSPHRASES[number], number))
        for directory in (*pgbackrest_directories(settings, PATHS), PATHS.postgres_socket, PATHS.textfiles):
            self.sandbox.make_directory(directory)
        self.sandbox.run([f"{BIN}/initdb", "-D", DATA, *options])
        parameters = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": PATHS.postgres_socket,
            "archive_mode": "on",
            "archive_command": archive_command(PATHS),
            "restore_command": " ".join(command(PATHS, "archive-get", "%f", '"%p"')),
            "fsync": "off",
            "min_wal_size": "2MB",
            "autovacuum": "off",  # at any moment of a test it would write WAL and run a transaction of its own
        }
        with self.sandbox.host_path(f"{DATA}/postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in parameters.items())
        self.sandbox.start()
        self.start()

    def start(self) -> None:
        program = Program(name="postgres", command=(f"{BIN}/postgres", "-D", DATA), stop_signal="INT")
        self.sandbox.supervisor.apply(program)
        self.sandbox.supervisor.wait_ready("postgres", Probe(tcp=("127.0.0.1", self.port)), timeout=PATIENCE_S)
        assert wait_until(partial(self._is_true, "SELECT NOT pg_is_in_recovery()"), PATIENCE_S)

    def stop(self) -> None:
        self.sandbox.supervisor.stop("postgres")

    def recover(self) -> None:
        """Restart in recovery, which ends on a new timeline."""
        self.stop()
        self.sandbox.write_file(f"{DATA}/recovery.signal", "")
        self.start()

    def roll_back(self, label: str, lsn: str) -> None:
        """Go back from a backup to a place in the WAL: a new timeline begins there, which has archived WAL."""
        self.stop()
        shutil.rmtree(self.sandbox.host_path(DATA))
        self.sandbox.make_directory(DATA)
        self.tool.restore(label, repository=1, directory=DATA)
        self.sandbox.write_file(f"{DATA}/recovery.signal", "")
        with self.sandbox.host_path(f"{DATA}/postgresql.conf").open("a") as file:
            file.write(f"recovery_target_lsn = '{lsn}'\nrecovery_target_action = 'promote'\n")
        self.start()
        self.archive_segments()

    def sql(self, statement: str) -> str:
        return self.sql_in("postgres", statement)

    def sql_in(self, database: str, statement: str) -> str:
        address = ("-h", PATHS.postgres_socket, "-p", str(self.port), "-U", "postgres")
        return self.sandbox.run(
            [f"{BIN}/psql", *address, "-d", database, "-XAtqc", statement], check=False
        ).stdout.strip()

    def write_segment(self) -> str:
        """Write a segment, end it, and return its name."""
        self.sql("CREATE TABLE IF NOT EXISTS written (at timestamptz); INSERT INTO written VALUES (now())")
        return self.sql("SELECT pg_walfile_name(pg_switch_wal())")

    def archive_segments(self, number: int = 3) -> None:
        """Write this many segments and wait until they are archived."""
        for _ in range(number):
            last = self.write_segment()
            archived = f"SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver"
            assert wait_until(partial(self._is_true, archived), PATIENCE_S)

    def wait_until_archived(self) -> None:
        """Wait until nothing is left to archive: the label of a backup is archived after the backup has ended."""
        status = self.sandbox.host_path(f"{DATA}/pg_wal/archive_status")
        assert wait_until(lambda: not list(status.glob("*.ready")), PATIENCE_S)

    def _is_true(self, question: str) -> bool:
        return self.sql(question) == "t"

    def set_retention(self, days: float) -> None:
        file = settings_file(PATHS)
        document = json.loads(self.sandbox.host_path(file).read_text())
        self.sandbox.write_file(file, json.dumps({**document, "retention_days": days}))


@pytest.fixture(scope="module", autouse=True)
def _patient_values() -> Iterator[None]:
    """Let values be recorded on a busy machine, which may lock no table for 5 s, or count a small one for 10 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "SMALL_S", PATIENCE_S)
        patch.setattr(recording, "record_values", partial(recording.record_values, patience_s=PATIENCE_S))
        yield


@pytest.fixture(scope="module")
def server(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchivingServer]:
    """A running server without a stanza."""
    started = ArchivingServer(Sandbox(tmp_path_factory.mktemp("archiving") / "home", rootfs), free_ports()["postgres"])
    try:
        started.create()
        yield started
    finally:
        started.sandbox.stop()


@pytest.fixture
def repository_kept(server: ArchivingServer, tmp_path: Path) -> Iterator[None]:
    """Put the repository back as it was before the test."""
    server.wait_until_archived()  # a file of which the archiver writes a part has another name afterwards
    kept = tmp_path / "kept"
    shutil.copytree(server.repository, kept, symlinks=True)
    yield
    shutil.rmtree(server.repository)
    shutil.copytree(kept, server.repository, symlinks=True)
    server.sandbox.adopt(repository(PATHS))
    server.sandbox.host_path("/srv/data/backup-findings.json").unlink(missing_ok=True)


def every_kind_of_file(server: ArchivingServer) -> None:
    """Write files of every kind of pgBackRest to both repositories of a server without a stanza."""
    server.tool.prepare()
    server.sql("CREATE TABLE large AS SELECT n, md5(n::text) AS text FROM generate_series(1, 200000) AS n")
    for kind in (BackupType.FULL, BackupType.INCREMENTAL):
        for number in server.tool.repositories:
            server.tool.backup(kind, repository=number)
        server.sql("UPDATE large SET text = 'changed' WHERE n = 1")
        server.archive_segments(2)
    server.recover()
    server.archive_segments(2)
