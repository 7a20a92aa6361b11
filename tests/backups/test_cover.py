"""What covers a target, and what does not: bad times, gaps, timelines, and repositories that are not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from observatory.backups.cover import Cover, NotEnoughSpaceError, find_cover
from observatory.backups.repository_contents import UncoveredTargetError, stored_files
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupType
from observatory.errors import REFUSED
from observatory.nodes.pgbackrest import cipher_file, cipher_section, settings_file
from tests.backups.conftest import PATHS, ArchivingServer

pytestmark = pytest.mark.slow

CLOCK = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
SECOND = timedelta(seconds=1)


class History:
    """What happened on the server: two backups, and a transaction in each of six WAL segments after the first one."""

    def __init__(self, server: ArchivingServer) -> None:
        self.server = server
        server.tool.prepare()
        server.sql("CREATE TABLE ledger (n int)")
        self.first = server.tool.backup(BackupType.FULL, repository=1)
        server.sql("SELECT pg_sleep(1.1)")  # pgBackRest has whole seconds
        self.commits = [self.commit() for _ in range(3)]
        self.second = server.tool.backup(BackupType.INCREMENTAL, repository=1)
        server.sql("SELECT pg_sleep(1.1)")
        self.commits += [self.commit() for _ in range(3)]
        self.last = datetime.fromisoformat(server.sql("SELECT max(pg_xact_commit_timestamp(xmin)) FROM ledger"))

    def commit(self) -> datetime:
        """Commit a transaction in a segment of its own; return a time after it, and before the next."""
        self.server.sql("INSERT INTO ledger VALUES (1)")
        time = datetime.fromisoformat(self.server.sql(f"SELECT {CLOCK}"))
        self.server.archive_segments(1)
        return time


@pytest.fixture(scope="module")
def history(server: ArchivingServer) -> History:
    """A stopped server with a history; nothing more is archived."""
    with server.sandbox.host_path("/srv/data/postgres/postgresql.conf").open("a") as file:
        file.write("track_commit_timestamp = on\n")
    server.stop()
    server.start()
    found = History(server)
    server.stop()
    return found


def found(history: History, time: datetime) -> Cover:
    return find_cover(history.server.sandbox, RecoveryTarget.at_time(time))


def refused(history: History, target: RecoveryTarget) -> str:
    before = listing(history.server.sandbox.home)
    with pytest.raises(UncoveredTargetError) as caught:
        find_cover(history.server.sandbox, target)
    assert caught.value.exit_code == REFUSED
    assert listing(history.server.sandbox.home) == before
    return str(caught.value)


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    files = (each for each in directory.rglob("*") if each.is_file())
    return {str(each): (each.stat().st_size, each.stat().st_mtime_ns) for each in files}


def segment(history: History, time: datetime) -> Path:
    """Return the file of the last segment that a recovery to a time replays, less the one after its end."""
    name = found(history, time).segments[1]
    return next(each for each in history.server.segments() if each.name.startswith(name))


def test_the_newest_backup_that_ended_before_the_time_has_the_least_to_replay(history: History) -> None:
    assert found(history, history.commits[1]).label == history.first.label
    later = found(history, history.commits[4])
    assert later.label == history.second.label
    assert later.replayed < 6
    assert later.needed_bytes > later.database_bytes


def test_the_last_transaction_is_covered_and_no_later_time(history: History) -> None:
    """Where the server is gone, the archive ends with its last transaction."""
    last = max(found(history, history.commits[5] - SECOND / 1000).stop, 0)
    assert found(history, history.last).stop >= last
    assert f"{history.last:%Y}" in refused(history, RecoveryTarget.at_time(datetime.now(UTC)))
    assert find_cover(history.server.sandbox, RecoveryTarget.latest()).inclusive


@pytest.mark.parametrize(
    ("early", "message"),
    [(timedelta(days=365), "no whole backup"), (timedelta(0), "no whole backup")],
)
def test_a_time_before_the_end_of_the_first_backup_is_refused(history: History, early: timedelta, message: str) -> None:
    text = refused(history, RecoveryTarget.at_time(history.first.ended - early))
    assert message in text
    assert "Covered: repository 1: 2" in text


def test_a_time_in_the_future_is_refused(history: History) -> None:
    assert "in the future" in refused(history, RecoveryTarget.at_time(datetime.now(UTC) + SECOND * 60))


def test_other_targets_without_cover_are_refused(history: History) -> None:
    assert "no such backup" in refused(history, RecoveryTarget.of_backup("20200101-000000F"))
    assert re.search(r"ends before it, at segment [0-9A-F]{24}", refused(history, RecoveryTarget.at_lsn("FF/0")))
    assert "no whole backup" in refused(history, RecoveryTarget.at_lsn("0/10"))
    assert "no whole backup" in refused(history, RecoveryTarget.at_lsn("0/3000000", timeline=7))


@pytest.mark.usefixtures("repository_kept")
def test_a_gap_of_the_archive_covers_nothing_after_it_until_the_next_backup(history: History) -> None:
    missing = segment(history, history.commits[0])
    after = found(history, history.commits[4])
    missing.unlink()
    text = refused(history, RecoveryTarget.at_time(history.commits[2]))
    assert f"{missing.name[:24]} (missing)" in text
    assert found(history, history.commits[4]) == after
    missing.touch()
    assert "(empty)" in refused(history, RecoveryTarget.at_time(history.commits[2]))


@pytest.mark.usefixtures("repository_kept")
def test_another_passphrase_is_refused(history: History) -> None:
    sandbox = history.server.sandbox
    sandbox.write_file(cipher_file(PATHS), cipher_section("another passphrase"))
    try:
        assert "cannot be read" in refused(history, RecoveryTarget.latest())
    finally:
        sandbox.write_file(cipher_file(PATHS), cipher_section("a passphrase"))


def test_the_repository_of_another_database_is_refused(history: History) -> None:
    sandbox = history.server.sandbox
    file = sandbox.host_path(settings_file(PATHS))
    kept = file.read_text()
    own = {**json.loads(kept), "controldata": ["/bin/echo", "Database system identifier: 1"]}
    sandbox.write_file(settings_file(PATHS), json.dumps(own))
    try:
        assert "another database" in refused(history, RecoveryTarget.latest())
    finally:
        sandbox.write_file(settings_file(PATHS), kept)


@pytest.mark.usefixtures("repository_kept")
@pytest.mark.parametrize("kind", ["truncated", "missing", "manifest"])
def test_a_backup_with_a_file_missing_or_truncated_is_passed_over(history: History, kind: str) -> None:
    place = history.server.repository / "backup/observatory"
    bundle = next((place / history.second.label / "bundle").iterdir())
    if kind == "truncated":
        os.truncate(bundle, bundle.stat().st_size - 100)
    elif kind == "missing":
        bundle.unlink()
    else:
        (place / history.second.label / "backup.manifest").unlink()
    assert found(history, history.commits[4]).label == history.first.label
    shutil.rmtree(place / history.first.label / "bundle")
    assert "no whole backup" in refused(history, RecoveryTarget.at_time(history.commits[4]))
    assert "is missing or truncated" in refused(history, RecoveryTarget.of_backup(history.first.label))


@pytest.mark.parametrize("has_room", [False, True])
def test_a_restore_leaves_disk_for_the_live_database(
    history: History, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    needed = found(history, history.commits[4]).needed_bytes
    real = os.statvfs(history.server.sandbox.home)
    blocks = needed // real.f_frsize + 1 if has_room else 1
    few = os.statvfs_result((*real[:3], 0, blocks, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: few)
    with pytest.raises(NotEnoughSpaceError, match="available 512 MiB stay free for the live database") as caught:
        found(history, history.commits[4])
    assert caught.value.exit_code == REFUSED


def test_the_files_of_a_manifest_are_those_of_the_backup_that_has_them() -> None:
    manifest = (
        'backup-label="B"\n[target:file]\n'
        'pg_data/base/1/112={"bni":2,"bno":100,"checksum":"a","repo-size":72,"size":8192,"timestamp":1}\n'
        'pg_data/base/1/113={"bni":2,"bno":172,"checksum":"a","reference":"A","repo-size":10,"size":8192}\n'
        'pg_data/base/1/200={"checksum":"a","repo-size":50,"size":90}\n'
        'pg_data/base/1/201={"size":0,"timestamp":1}\n'
    )
    assert stored_files("B", manifest) == {"B/bundle/2": 172, "A/bundle/2": 182, "B/pg_data/base/1/200": 50}
