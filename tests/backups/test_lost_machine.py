"""The recovery of a lost machine from a copy of a repository, on real servers without a stack."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from observatory.backups.dump_manifest import DumpRefusedError
from observatory.backups.lost_machine import Recovered, RecoveryRefusedError, recover, started
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.tool import Backup, BackupError, BackupType
from observatory.errors import ObservatoryError
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings, Ports
from tests.backups.conftest import ArchivingServer
from tests.support.ports import free_ports

pytestmark = pytest.mark.slow
PASSPHRASES = {1: "another passphrase", 2: "a passphrase"}  # the second is the repository's
SETTINGS = LocalSettings(ports=Ports(postgres=free_ports()["postgres"]))
SCHEMA = """
    CREATE EXTENSION timescaledb;
    CREATE SCHEMA observatory;
    CREATE TABLE observatory.schema_migrations (version int, statements_done int, statements_total int);
    INSERT INTO observatory.schema_migrations VALUES (1, 3, 3), (2, 1, 1);
    CREATE TABLE spans (at timestamptz NOT NULL, number int);
    SELECT create_hypertable('spans', by_range('at'));
    CREATE ROLE analyst LOGIN PASSWORD 'their own';
"""
SPANS = "INSERT INTO spans SELECT now() - n * interval '1 day', n FROM generate_series(1, 20) AS n"
CONTENT = """
    SELECT (SELECT count(*) FROM spans), (SELECT count(*) FROM show_chunks('spans')),
        (SELECT rolpassword FROM pg_authid WHERE rolname = 'analyst')
"""


@dataclass(frozen=True)
class Lost:
    """What is left of the machine: the copy of a repository; and what its database had.

    `unfinished` is a copy from the end of a `second` backup, and `later` one after a rollback to before it; `before` is
    the label of the first backup.
    """

    copy: Path
    rootfs: Path
    content: tuple[Any, ...]
    segments: list[str]
    unfinished: Path
    second: Backup
    later: Path
    before: str

    def recover(self, home: Path, copy: Path | None = None, **changes: Any) -> Recovered:
        arguments: dict[str, Any] = {"passphrases": PASSPHRASES, "settings": SETTINGS, "known": (1, 2, 3)} | changes
        return recover(Sandbox(home, self.rootfs), copy or self.copy, **arguments)

    def read(self, home: Path) -> tuple[Any, ...]:
        sandbox = Sandbox(home, self.rootfs)
        with started(sandbox, SETTINGS) as conninfo:
            own = make_conninfo(conninfo, dbname="observatory", host=f"{home}/run/postgresql")
            with psycopg.connect(own) as connection:
                return connection.execute(CONTENT).fetchall()[0]


@pytest.fixture(scope="module")
def lost(server: ArchivingServer, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """A machine with a backup and later rows in the archived WAL; its copy is taken, and the machine is gone."""
    server.sql("ALTER SYSTEM SET shared_preload_libraries = 'timescaledb'")
    server.stop()
    server.start()
    server.tool.prepare()
    server.sql("CREATE DATABASE observatory")
    with psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", dbname="observatory") as connection:
        connection.execute(SCHEMA)
        connection.execute(SPANS)
        connection.commit()
        first = server.tool.backup(BackupType.FULL, repository=1)
        server.archive_segments()
        connection.execute(SPANS)
        connection.commit()
        server.archive_segments()
        content = connection.execute(CONTENT).fetchall()[0]
    copies = tmp_path_factory.mktemp("lost")
    shutil.copytree(server.repository, copies / "copy", symlinks=True)
    segments = [each.name for each in server.segments()]
    before = server.sql("SELECT pg_current_wal_lsn()")
    server.archive_segments()
    second = server.tool.backup(BackupType.FULL, repository=1)
    server.wait_until_archived()
    shutil.copytree(server.repository, copies / "unfinished", symlinks=True)
    server.archive_segments()
    server.roll_back(first.label, before)
    shutil.copytree(server.repository, copies / "later", symlinks=True)
    server.sandbox.stop()
    return Lost(
        copy=copies / "copy",
        rootfs=server.sandbox.rootfs,
        content=content,
        segments=segments,
        unfinished=copies / "unfinished",
        second=second,
        later=copies / "later",
        before=first.label,
    )


@pytest.fixture
def home() -> Iterator[Path]:
    """A place for a home whose sockets have a short path."""
    directory = Path(tempfile.mkdtemp(prefix="observatory-lost-"))
    yield directory / "home"
    shutil.rmtree(directory, ignore_errors=True)


def changed(lost: Lost, directory: Path, change: Callable[[Path], object]) -> Path:
    copy = directory / "changed"
    shutil.copytree(lost.copy, copy, symlinks=True)
    change(copy)
    return copy


def test_all_that_was_archived_is_recovered_and_the_new_timeline_is_archived(lost: Lost, home: Path) -> None:
    before = sorted(each.stat().st_mtime_ns for each in lost.copy.rglob("*"))
    recovered = lost.recover(home)
    assert recovered.migrations == (1, 2)
    assert lost.read(home) == lost.content
    archive = home / "data/backups/archive/observatory/17-1"
    assert (archive / "00000002.history").exists()
    assert list(archive.glob("00000002*/00000002*"))
    settings = (home / "data/postgres/postgresql.auto.conf").read_text()
    assert "archive_mode" not in settings
    assert not (home / "data/postgres/recovery.signal").exists()
    assert sorted(each.stat().st_mtime_ns for each in lost.copy.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"passphrases": {1: "wrong", 2: "too"}}, RecoveryRefusedError, "cannot be read by any passphrase of the key"),
        ({"known": (1,)}, RecoveryRefusedError, "has migrations that this checkout lacks: 2"),
        (
            {
                "settings": SETTINGS.model_copy(
                    update={"database": SETTINGS.database.model_copy(update={"name": "other"})}
                )
            },
            RecoveryRefusedError,
            "has no database other, only observatory, postgres",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    lost: Lost, home: Path, changes: dict[str, Any], error: type[ObservatoryError], message: str
) -> None:
    with pytest.raises(error, match=message):
        lost.recover(home, **changes)


def test_a_backup_from_before_a_rollback_does_not_hide_one_that_leads_to_the_present(lost: Lost, home: Path) -> None:
    assert lost.recover(home, lost.later).label == lost.before
    assert lost.read(home) == lost.content
    assert (home / "data/backups/archive/observatory/17-1/00000003.history").exists()


def test_a_copy_that_lacks_the_history_of_a_timeline_is_refused(lost: Lost, home: Path, tmp_path: Path) -> None:
    """PostgreSQL would end on the first timeline, whose WAL goes further than that of the third."""
    lost.recover(home, lost.later)
    copy = tmp_path / "changed"
    shutil.copytree(home / "data/backups", copy, symlinks=True)
    shutil.rmtree(home)
    _without("archive/*/*/00000002.history")(copy)
    with pytest.raises(RecoveryRefusedError, match=r"00000002\.history is missing or damaged"):
        lost.recover(home, copy)


def test_what_is_not_of_the_repository_is_left_out(lost: Lost, home: Path, tmp_path: Path) -> None:
    """The newest backup again, as `cp -aL` copies it, keeps pgBackRest from making another one."""
    copy = tmp_path / "disk"
    shutil.copytree(lost.copy, copy)
    assert (copy / "backup/observatory/latest").is_dir()
    (copy / "lost+found").symlink_to(tmp_path)
    assert lost.recover(home, copy).label == lost.before
    sandbox = Sandbox(home, lost.rootfs)
    with started(sandbox, SETTINGS):
        assert PgBackRest(sandbox).backup(BackupType.FULL, repository=1).label > lost.before
    assert sorted(each.name for each in (home / "data/backups").iterdir()) == ["archive", "backup"]


@pytest.mark.parametrize("lacking", ["backup/*/{label}/backup.manifest*", "archive/*/*/*/{segment}-*"])
def test_a_copy_that_was_made_during_a_backup_is_recovered_from_the_backup_before(
    lost: Lost, home: Path, tmp_path: Path, lacking: str
) -> None:
    """It has the new backup in its list, and not all of its files or its WAL."""
    copy = tmp_path / "changed"
    shutil.copytree(lost.unfinished, copy, symlinks=True)
    _without(lacking.format(label=lost.second.label, segment=lost.second.wal_stop))(copy)
    assert lost.recover(home, copy).label == lost.before


def _without(*patterns: str) -> Callable[[Path], object]:
    def change(copy: Path) -> None:
        for pattern in patterns:
            for each in copy.glob(pattern):
                each.unlink()

    return change


def _damaged(pattern: str) -> Callable[[Path], object]:
    def change(copy: Path) -> None:
        file = max(copy.glob(pattern), key=lambda each: each.stat().st_size)
        content = bytearray(file.read_bytes())
        for position in range(len(content) // 2, len(content), 1024):  # some bytes are of no use to a restore
            content[position] ^= 1
        file.write_bytes(content)

    return change


def _linked(copy: Path) -> None:
    (copy / "archive").rename(copy.with_name("elsewhere"))
    (copy / "archive").symlink_to(copy.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_linked, "has a link, and a repository has none: archive"),
        (shutil.rmtree, "is no backup repository: it has no backup/observatory/backup.info"),
        (_without("archive/*/archive.info*"), "it has no archive/observatory/archive.info"),
        (_without("backup/*/*F/backup.manifest*"), r"to its newest timeline: (\S+): \1/\S+ is missing"),
        (_without("backup/*/*F/bundle/*"), r"to its newest timeline: (\S+): \1/\S+ is missing"),
        (_damaged("backup/*/*F/bundle/*"), "pgbackrest restore failed"),
        (_damaged("backup/*/backup.info*"), None),  # its copy is intact
    ],
)
def test_a_copy_that_lacks_files_or_is_damaged_is_refused(
    lost: Lost, home: Path, tmp_path: Path, change: Callable[[Path], object], expected: str | None
) -> None:
    copy = changed(lost, tmp_path, change)
    if expected is None:
        assert lost.recover(home, copy).migrations == (1, 2)
        return
    with pytest.raises(BackupError, match=expected):
        lost.recover(home, copy)


def test_a_gap_in_the_wal_is_refused_and_can_be_accepted(lost: Lost, home: Path, tmp_path: Path) -> None:
    gap = lost.segments[-4]
    copy = changed(lost, tmp_path, _without(f"archive/observatory/17-1/*/{gap}"))
    with pytest.raises(RecoveryRefusedError, match=r"a gap: the recovery ends at 0/\w+, and the copy has WAL up to"):
        lost.recover(home, copy)
    shutil.rmtree(home)
    assert lost.recover(home, copy, accept_gap=True).migrations == (1, 2)


def test_too_little_space_is_found_first(lost: Lost, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    with pytest.raises(DumpRefusedError, match="MiB of free space, but the copy and the database may need"):
        lost.recover(home)
    assert not (home / "data/postgres").exists()
