"""The life of a clone: exact, read-only, cut off from everything, bounded, and never left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo

from observatory.backups import cover
from observatory.backups.cover import NotEnoughSpaceError
from observatory.backups.flashback import clones
from observatory.backups.flashback.clones import (
    Clone,
    close_all,
    close_clones,
    close_expired,
    list_clones,
    open_clone,
    reusable,
    size_of,
)
from observatory.backups.flashback.difference import Request
from observatory.backups.flashback.errors import CloneRefusedError, UnknownCloneError
from observatory.backups.flashback.flashback import compare_table
from observatory.backups.repository_contents import UncoveredTargetError
from observatory.backups.restored import RestoreError
from observatory.backups.scratch import PARENT, ScratchDirectory, remove_abandoned, scratch_directories
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupType
from observatory.runtime import Sandbox
from observatory.waiting import wait_until
from tests.backups.conftest import PATHS, ArchivingServer

pytestmark = pytest.mark.slow

PLENTY = 2**50
CHILD = """
import os, signal, sys
from pathlib import Path
from observatory.backups.flashback import clones
from observatory.backups.target import RecoveryTarget
from observatory.runtime import Sandbox
from observatory.waiting import wait_until

def die(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

home, rootfs, time, phase = sys.argv[1:]
if phase == "_limit":
    clones._limit = die
clones.open_clone(
    Sandbox(Path(home), Path(rootfs)), RecoveryTarget.parse(time), database="postgres", user="owner",
    on_step=lambda step: die() if step.startswith(phase) else None,
)
"""


@dataclass(frozen=True, kw_only=True)
class Live:
    """A live server with twenty rows at `time`, of which five were deleted afterwards, and one came."""

    server: ArchivingServer
    time: datetime

    @property
    def sandbox(self) -> Sandbox:
        return self.server.sandbox

    @property
    def target(self) -> RecoveryTarget:
        return RecoveryTarget.at_time(self.time)

    @property
    def conninfo(self) -> str:
        host = self.sandbox.host_path(PATHS.postgres_socket)
        return make_conninfo(host=str(host), port=self.server.port, user="postgres", dbname="postgres")

    def open(self, target: RecoveryTarget | None = None) -> Clone:
        return open_clone(self.sandbox, target or self.target, database="postgres", user="owner")


@pytest.fixture(scope="module")
def live(server: ArchivingServer) -> Iterator[Live]:
    server.tool.prepare()
    server.sql("CREATE ROLE owner LOGIN; CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t OWNER TO owner")
    server.tool.backup(BackupType.FULL, repository=1)
    server.sql("SELECT pg_sleep(1.1)")  # pgBackRest has whole seconds
    server.sql("INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 20) n")
    time = datetime.now(UTC)
    server.sql("DELETE FROM t WHERE id <= 5")
    server.sql("INSERT INTO t VALUES (100, 'later')")
    server.archive_segments(1)
    yield Live(server=server, time=time)
    close_all(server.sandbox)


@pytest.fixture(scope="module")
def clone(live: Live) -> Clone:
    """An open clone; the tests of this file close it."""
    return live.open()


def test_a_clone_shows_the_time_exactly_and_missing_rows_come_back(live: Live, clone: Clone) -> None:
    with psycopg.connect(clone.conninfo) as session:
        assert session.execute("SELECT count(*), max(id) FROM t").fetchone() == (20, 20)
    found = compare_table(clone.conninfo, live.conninfo, Request(table="t", restore=True), free_bytes=lambda: PLENTY)
    assert (found.missing, found.changed, found.added) == (5, 0, 1)
    assert live.server.sql("SELECT count(*) FROM t") == "21"


def test_a_clone_can_be_read_and_nothing_else(clone: Clone) -> None:
    with psycopg.connect(clone.conninfo, autocommit=True) as session:
        for statement in ("DELETE FROM t", "CREATE TABLE x ()", "SELECT pg_promote()"):
            with pytest.raises((pg.ReadOnlySqlTransaction, pg.InsufficientPrivilege)):
                session.execute(statement.encode())
        settings: dict[str, str] = dict(session.execute("SELECT name, setting FROM pg_settings").fetchall())
    assert settings["archive_mode"] == "off"
    assert settings["listen_addresses"] == ""
    assert settings["timescaledb.max_background_workers"] == "0"
    assert settings["temp_file_limit"] == str(2**20)  # kB


def test_only_the_operator_reaches_a_clone(live: Live, clone: Clone) -> None:
    directory = ScratchDirectory(live.sandbox, clone.name)
    assert directory.host.stat().st_mode & 0o077 == 0
    assert "peer" in (directory.host / "hba.conf").read_text()
    own = Path("/proc/self/ns/net").stat().st_ino
    server = _postmaster(directory)
    assert "shared_preload_libraries=timescaledb,pg_stat_statements" in " ".join(server.cmdline())
    superuser = make_conninfo(clone.conninfo, user="postgres")
    assert wait_until(lambda: _is_refused(superuser), 60)
    assert Path(f"/proc/{server.pid}/ns/net").stat().st_ino != own


def _postmaster(directory: ScratchDirectory) -> psutil.Process:
    """Return the oldest server process of a clone: the others are its sessions, which come and go."""
    inside = set(directory.processes())
    found = [process for process in psutil.process_iter(["name", "create_time"]) if process.pid in inside]
    return min((each for each in found if each.info["name"] == "postgres"), key=lambda each: each.info["create_time"])


def test_a_time_has_one_clone(live: Live, clone: Clone) -> None:
    assert live.open() == clone
    assert list_clones(live.sandbox) == [clone]
    assert size_of(live.sandbox, clone) > 2**20


def test_an_earlier_clone_is_not_the_newest_state(clone: Clone) -> None:
    assert reusable([replace(clone, target="latest")], RecoveryTarget.latest()) is None
    assert reusable([clone], RecoveryTarget.parse(clone.target)) == clone


def test_clones_are_few(live: Live, clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clones, "MOST_CLONES", 1)
    with pytest.raises(CloneRefusedError, match=clone.name):
        live.open(RecoveryTarget.latest())
    assert len(scratch_directories(live.sandbox)) == 1


def test_a_clone_leaves_disk_for_the_live_database(live: Live, clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cover, "RESERVE_BYTES", 2**60)
    with pytest.raises(NotEnoughSpaceError, match="stay free"):
        live.open(RecoveryTarget.latest())
    assert [each.name for each in scratch_directories(live.sandbox)] == [clone.name]


def test_a_time_without_a_backup_is_refused(live: Live, clone: Clone) -> None:
    with pytest.raises(UncoveredTargetError):
        live.open(RecoveryTarget.at_time(live.time - timedelta(days=1)))
    assert [each.name for each in scratch_directories(live.sandbox)] == [clone.name]


def test_an_unknown_clone_is_not_closed(live: Live, clone: Clone) -> None:
    with pytest.raises(UnknownCloneError, match=clone.name):
        close_clones(live.sandbox, [clone.name, "flashback-nothing"])
    assert list_clones(live.sandbox) == [clone]


def test_an_old_clone_is_closed_with_its_processes(live: Live, clone: Clone) -> None:
    directory = ScratchDirectory(live.sandbox, clone.name)
    assert close_expired(live.sandbox) == []
    file = live.sandbox.host_path(f"{PARENT}/{clone.name}/clone.json")
    past = datetime.now(UTC) - timedelta(minutes=1)
    live.sandbox.write_file(
        f"{directory.inside}/clone.json", json.dumps(json.loads(file.read_text()) | {"closes": past.isoformat()})
    )
    assert close_expired(live.sandbox) == [clone.name]
    assert_gone(live, clone.name)


@pytest.mark.parametrize("phase", ["restore", "_limit"])
def test_a_killed_command_leaves_nothing_that_the_next_one_does_not_remove(live: Live, phase: str) -> None:
    arguments = [str(live.sandbox.home), str(live.sandbox.rootfs), live.time.isoformat(), phase]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    left = [each.name for each in scratch_directories(live.sandbox)]
    assert list_clones(live.sandbox) == []
    assert close_expired(live.sandbox) == left
    for name in left:
        assert_gone(live, name)


def _closed(live: Live, name: str) -> list[str]:
    return close_clones(live.sandbox, [name])


def _ended(live: Live, name: str) -> list[str]:
    """Do what every next restore and `backup verify` do, when the clone's server has ended."""
    ScratchDirectory(live.sandbox, name).end_processes()
    return remove_abandoned(live.sandbox)


@pytest.mark.parametrize("remove", [_closed, _ended])
def test_a_deep_directory_has_a_short_path_which_is_removed_with_it(
    live: Live, monkeypatch: pytest.MonkeyPatch, remove: Callable[[Live, str], list[str]]
) -> None:
    monkeypatch.setattr(clones, "MAX_SOCKET_PATH", 60)
    clone = live.open()
    alias = Path(clone.host)
    assert alias.is_symlink()
    with psycopg.connect(clone.conninfo) as session:
        assert session.execute("SELECT count(*) FROM t").fetchone() == (20,)
    assert remove(live, clone.name) == [clone.name]
    assert_gone(live, clone.name)
    assert not alias.is_symlink()


@pytest.mark.usefixtures("repository_kept")
def test_a_damaged_repository_gives_way_to_the_other_one_unless_it_is_named(live: Live) -> None:
    for number in (2, 1):  # the newest backup, with the least to replay, is in the first repository
        damaged = live.server.tool.backup(BackupType.FULL, repository=number)
        live.server.sql(f"INSERT INTO t VALUES ({210 + number}, 'after a backup')")
        live.server.archive_segments(1)
    live.server.sql("SELECT pg_sleep(1.1)")
    target = RecoveryTarget.at_time(datetime.now(UTC))
    live.server.sql("INSERT INTO t VALUES (200, 'later')")
    live.server.archive_segments(1)
    for bundle in (live.server.repository / "backup/observatory" / damaged.label / "bundle").iterdir():
        bundle.write_bytes(bytes(each ^ 1 for each in bundle.read_bytes()))
    lines: list[str] = []
    with pytest.raises(RestoreError, match=f"{damaged.label} was not restored") as caught:
        open_clone(live.sandbox, target, database="postgres", user="owner", repository=1, on_other=lines.append)
    assert "`--repository N` restores from another one" in caught.value.remedy
    assert lines == []
    clone = open_clone(live.sandbox, target, database="postgres", user="owner", on_other=lines.append)
    assert clone.repository == 2
    [line] = lines
    assert line.startswith(f"{damaged.label} in repository 1 cannot be restored (")
    assert "ERROR" in line
    assert "\n" not in line
    with psycopg.connect(clone.conninfo) as session:
        assert session.execute("SELECT count(*) FROM t WHERE id = 200").fetchone() == (0,)
    close_clones(live.sandbox, [clone.name])


@pytest.mark.usefixtures("repository_kept")
def test_a_damaged_segment_on_the_way_gives_way_to_the_other_repository(live: Live) -> None:
    """The replay finds it: the search for the target reads the last segments only."""
    for number in (2, 1):
        live.server.tool.backup(BackupType.FULL, repository=number)
    live.server.archive_segments(8)
    damaged = live.server.segments()[-8]  # in the first half, which the search does not read
    damaged.write_bytes(bytes(each ^ 1 for each in damaged.read_bytes()))
    target = RecoveryTarget.at_time(datetime.now(UTC))
    live.server.sql("INSERT INTO t VALUES (300, 'later')")
    live.server.archive_segments(1)
    lines: list[str] = []
    clone = open_clone(live.sandbox, target, database="postgres", user="owner", on_other=lines.append)
    assert clone.repository == 2
    [line] = lines
    assert "the database system is" not in line
    close_clones(live.sandbox, [clone.name])


def _is_refused(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError as error:
        return "no pg_hba.conf entry" in str(error)
    return False


def assert_gone(live: Live, name: str) -> None:
    directory = ScratchDirectory(live.sandbox, name)
    assert not directory.host.exists()
    assert directory.processes() == []
