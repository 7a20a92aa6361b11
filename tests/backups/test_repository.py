"""The check of a real repository, and the expiry of backups, on a real PostgreSQL with pgBackRest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.backups.repository import RepositoryCheck, check_repositories
from observatory.backups.tool import (
    BackupDamagedError,
    BackupError,
    BackupType,
    OtherDatabaseError,
    RepositoryUnreadableError,
)
from observatory.nodes.cloud_init import program_text
from observatory.nodes.pgbackrest import cipher_file, cipher_section, command, repository, settings_file
from observatory.settings import LocalSettings
from tests.backups.conftest import DATA, PASSPHRASES, PATHS, ArchivingServer
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PAGE = 8192


@pytest.fixture(scope="module")
def archived(server: ArchivingServer) -> ArchivingServer:
    """A full backup, three segments, an incremental backup and three more segments."""
    server.tool.prepare()
    server.tool.backup(BackupType.FULL, repository=1)
    server.archive_segments()
    server.tool.backup(BackupType.INCREMENTAL, repository=1)
    server.archive_segments()
    return server


def check(server: ArchivingServer, *, repository: int = 1, contents: bool = False) -> RepositoryCheck:
    return check_repositories(server.sandbox, repository=repository, contents=contents)


def findings(server: ArchivingServer, *, contents: bool = False) -> list[str]:
    return [each.text for each in check(server, contents=contents).findings]


def published(server: ArchivingServer) -> str:
    return server.sandbox.host_path(f"{PATHS.textfiles}/backups.prom").read_text()


def test_a_sound_repository_has_no_findings(archived: ArchivingServer) -> None:
    found = check(archived, contents=True)
    assert (found.findings, dict(found.obstacles)) == ((), {})
    assert 'observatory_archive_gaps{repository="1"} 0\n' in published(archived)


def test_each_repository_has_its_own_key_and_files_and_is_private(archived: ArchivingServer) -> None:
    """A segment is archived when both have it. Neither passphrase opens the other repository."""
    first, second = (archived.tool.place(number) for number in archived.tool.repositories)
    assert {file.name[:24] for file in second.rglob("*.zst")} >= {file.name[:24] for file in archived.segments()[-3:]}
    kept = archived.sandbox.host_path(cipher_file(PATHS, 2)).read_text()
    archived.sandbox.write_file(cipher_file(PATHS, 2), cipher_section(PASSPHRASES[1], 2))
    try:
        assert archived.tool.info(1)
        with pytest.raises(RepositoryUnreadableError, match=r"repository .*/data/backups-2 cannot be read"):
            archived.tool.info(2)
    finally:
        archived.sandbox.write_file(cipher_file(PATHS, 2), kept)
    files = [each for place in (first, second) for each in place.rglob("*")]
    modes = {(each.is_dir(), each.stat().st_mode & 0o777) for each in files if not each.is_symlink()}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_backups_and_wal_go_to_the_other_repository_while_one_is_unreachable(archived: ArchivingServer) -> None:
    """PostgreSQL keeps every segment until both repositories have it."""
    place = archived.tool.place(1)
    hidden = place.rename(place.with_name("unreachable"))
    try:
        before = len(archived.tool.info(2))
        switched = [archived.write_segment() for _ in range(3)]
        made = archived.tool.backup(BackupType.FULL, repository=2)
        assert len(archived.tool.info(2)) == before + 1
        assert made.repository == 2
        with pytest.raises(RepositoryUnreadableError, match="data/backups cannot be read"):
            archived.tool.backup(BackupType.FULL, repository=1)
        second = archived.tool.place(
            2
        )  # two processes archive: the backup's last segment may be there before another one
        until(lambda: {file.name[:24] for file in second.rglob("*.zst")} >= set(switched), "the segments in the second")
        assert set(switched) <= {file.name for file in archived.sandbox.host_path(f"{DATA}/pg_wal").iterdir()}
        assert "cannot be read" in findings(archived)[0]
        assert 'observatory_backup_repository_readable{repository="1"} 0\n' in published(archived)
        assert 'observatory_backup_repository_readable{repository="2"} 1\n' in published(archived)
    finally:
        hidden.rename(place)
    archived.archive_segments(1)
    assert {file.name[:24] for file in archived.segments()} >= set(switched)
    assert findings(archived) == []


@pytest.mark.usefixtures("repository_kept")
@pytest.mark.parametrize("number", [1, -3, -1])
def test_a_removed_segment_is_named_with_the_backups_that_it_cuts_off(archived: ArchivingServer, number: int) -> None:
    """The newest is known to PostgreSQL; pgBackRest's own `verify` and `info` find nothing."""
    full, incremental = (backup.label for backup in archived.tool.info(1))
    start = archived.tool.info(1)[0].wal_start
    segments = [file for file in archived.segments() if file.name[:24] >= start]
    segments[number].unlink()
    missing = segments[number].name[:24]
    assert "status: error" not in archived.sandbox.run(command(PATHS, "verify", "--output=text", "--verbose")).stdout
    [text] = findings(archived)
    assert f"{missing} (missing)" in text
    assert "observatory backup create --type full" in text
    cut_off = {full} if number == 1 else {full, incremental}
    assert check(archived).obstacles == dict.fromkeys(((1, label) for label in cut_off), f"{missing} (missing)")
    assert 'observatory_archive_gaps{repository="1"} 1\n' in published(archived)


def _empty(server: ArchivingServer) -> str:
    server.segments()[-2].write_bytes(b"")
    return f"{server.segments()[-2].name[:24]} (empty)"


def _stored_twice(server: ArchivingServer) -> str:
    file = server.segments()[-2]
    shutil.copy2(file, file.with_name(f"{file.name[:24]}-{'a' * 40}.zst"))
    return f"{file.name[:24]} (stored twice)"


def _no_manifest(server: ArchivingServer) -> str:
    file = next(server.repository.glob("backup/observatory/*F/backup.manifest"))
    file.unlink()
    return f"Copy {file.parent.name}/backup.manifest.copy"


def _no_backup(server: ArchivingServer) -> str:
    directory = next(server.repository.glob("backup/observatory/*F"))
    shutil.rmtree(directory)
    return f"{directory.name}/backup.manifest is missing"


def _no_backup_information(server: ArchivingServer) -> str:
    (server.repository / "backup/observatory/backup.info").unlink()
    return "copy backup/observatory/backup.info.copy to that name, with its owner"


def _no_archive_information(server: ArchivingServer) -> str:
    for file in (server.repository / "archive/observatory").glob("archive.info*"):
        file.unlink()
    return "archive.info"


def _nothing(server: ArchivingServer) -> str:
    for directory in server.repository.iterdir():
        shutil.rmtree(directory)
    return "missing stanza path"


DAMAGES = [_empty, _stored_twice, _no_manifest, _no_backup, _no_backup_information, _no_archive_information, _nothing]


@pytest.mark.usefixtures("repository_kept")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_the_repository_lacks_is_named(
    archived: ArchivingServer, damage: Callable[[ArchivingServer], str]
) -> None:
    expected = damage(archived)
    assert any(expected in text for text in findings(archived)), findings(archived)


@pytest.mark.usefixtures("repository_kept")
def test_a_repository_that_cannot_be_read_is_a_finding_with_the_way_out(archived: ArchivingServer) -> None:
    _no_archive_information(archived)
    [text] = findings(archived)
    assert "archive.info.copy'. Restore its files or its passphrase" in text
    assert "see docs/backups.md" in text


@pytest.mark.usefixtures("repository_kept")
def test_a_damaged_segment_is_found_by_reading_the_contents(archived: ArchivingServer) -> None:
    """It stays a finding until the next reading. Not truncated: pgBackRest repeats that for 15 s."""
    another, file = archived.segments()[-3:-1]
    file.write_bytes(another.read_bytes())
    assert findings(archived) == []
    [text] = findings(archived, contents=True)
    assert file.name[:24] in text
    assert findings(archived) == [text]


@pytest.mark.usefixtures("repository_kept")
def test_another_passphrase_is_reported_with_the_way_out(archived: ArchivingServer) -> None:
    kept = archived.sandbox.host_path(cipher_file(PATHS)).read_text()
    archived.sandbox.write_file(cipher_file(PATHS), cipher_section("another one"))
    try:
        for attempt in (archived.tool.info, archived.tool.prepare):
            with pytest.raises(RepositoryUnreadableError, match=r"move .*/data/backups away and run `observatory up`"):
                attempt()
        assert "cannot be read" in findings(archived)[0]
    finally:
        archived.sandbox.write_file(cipher_file(PATHS), kept)


CHECK = """
import sys
from pathlib import Path

from observatory.backups.repository import check_repositories
from observatory.interruption import interrupt_on_signals
from observatory.runtime import Sandbox

interrupt_on_signals()
check_repositories(Sandbox(*map(Path, sys.argv[1:])))
"""


@pytest.mark.usefixtures("repository_kept")
def test_a_signal_ends_a_check_of_a_repository_that_hangs(archived: ArchivingServer) -> None:
    """As on a mount that does not respond: reading the information of the backups never ends."""
    file, sandbox = archived.repository / "backup/observatory/backup.info", archived.sandbox
    file.unlink()
    os.mkfifo(file, mode=0o600)
    sandbox.adopt(repository(PATHS))
    command_line = [sys.executable, "-c", CHECK, str(sandbox.home), str(sandbox.rootfs)]
    writers: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nothing has opened it to read
            writers.append(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(is_read, "the check to read the file")
            process.send_signal(signal.SIGTERM)
            assert "KeyboardInterrupt: SIGTERM" in process.communicate(timeout=60)[1]
            until(lambda: _is_broken(writers[0]), "the child to have ended, too")
        finally:
            process.kill()
            for each in writers:
                os.close(each)
    with sandbox.lock("backup-check"):
        pass


def _is_broken(pipe: int) -> bool:
    try:
        os.write(pipe, b" ")
    except BrokenPipeError:
        return True
    return False


def damage(server: ArchivingServer, table: str) -> Path:
    """Flip a byte in the first page of a table's file, and return the file."""
    server.sql(
        f"CREATE TABLE IF NOT EXISTS {table} WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 1000) AS n"
    )
    server.sql(f"VACUUM {table}")  # nothing may write the page again: neither the autovacuum nor hint bits of a reader
    server.sql("CHECKPOINT")
    path = server.sql(f"SELECT pg_relation_filepath('{table}')")
    file = server.sandbox.host_path(f"/srv/data/postgres/{path}")
    with file.open("r+b") as opened:
        opened.seek(PAGE // 2)
        byte = opened.read(1)[0]
        opened.seek(PAGE // 2)
        opened.write(bytes([byte ^ 0xFF]))
    os.utime(file)
    return file


def test_a_damaged_backup_is_kept_and_fails_and_the_last_sound_one_stays(archived: ArchivingServer) -> None:
    """At a retention of 0 days everything expires that may."""
    sandbox, sound = archived.sandbox, archived.tool.info(1)[0].label
    archived.set_retention(0)
    damage(archived, "precious")
    for kind in (BackupType.INCREMENTAL, BackupType.FULL, BackupType.DIFFERENTIAL):
        with pytest.raises(
            BackupDamagedError, match=r"damaged pages: base/\d+/\d+ \(precious, database postgres\)"
        ) as error:
            archived.tool.backup(kind, repository=1)
        assert error.value.exit_code == 1
    sandbox.run(command(PATHS, "expire"))
    assert [(backup.type, backup.damaged) for backup in archived.tool.info(1)] == [
        ("full", False),
        ("incremental", False),
        ("incremental", True),
        ("full", True),
        ("differential", True),
    ]
    [text] = findings(archived)
    assert "precious" in text
    assert 'observatory_backups_damaged{repository="1"} 1\n' in published(archived)
    assert archived.tool.info(1)[0].label == sound
    archived.sql("DROP TABLE precious")
    repaired = archived.tool.backup(BackupType.FULL, repository=1)
    assert [backup.label for backup in archived.tool.info(1)] == [repaired.label]
    assert findings(archived) == []


def test_the_program_of_a_machine_makes_and_checks_backups_by_itself(archived: ArchivingServer) -> None:
    sandbox = archived.sandbox
    sandbox.write_file("/srv/etc/backup_repository.py", program_text("backup_repository.py"))
    program = ("/usr/bin/python3", "-I", "/srv/etc/backup_repository.py")
    before = len(archived.tool.info(1))
    sandbox.run([*program, "--backup", "incr", settings_file(PATHS)])
    assert len(archived.tool.info(1)) == before + 1
    damage(archived, "valuable")
    done = sandbox.run([*program, "--backup", "full", settings_file(PATHS)], check=False)
    assert done.returncode == 1
    assert "(valuable, database postgres)" in done.stderr
    assert len(archived.tool.info(1)) == before + 2
    archived.sql("DROP TABLE valuable")
    sandbox.run([*program, "--backup", "full", "--contents", settings_file(PATHS)])
    assert findings(archived) == []


def test_a_gap_counts_until_a_full_backup_is_made_after_it_was_found(archived: ArchivingServer) -> None:
    archived.set_retention(30)
    archived.archive_segments()
    archived.segments()[-2].unlink()
    assert len(findings(archived)) == 1
    archived.tool.backup(BackupType.INCREMENTAL, repository=1)
    assert len(findings(archived)) == 1
    made = archived.tool.backup(BackupType.FULL, repository=1)
    found = check(archived)
    assert found.findings == ()
    assert (1, made.label) not in found.obstacles
    assert found.obstacles


def test_the_check_follows_a_change_of_the_timeline(archived: ArchivingServer) -> None:
    """A recovery ends on a new timeline; a backup of the old one can be restored to now only with its history."""
    archived.set_retention(0)
    made = archived.tool.backup(BackupType.FULL, repository=1)
    archived.archive_segments()
    archived.recover()
    archived.archive_segments()
    assert any(file.name.startswith("00000002") for file in archived.segments())
    archived.tool.backup(BackupType.INCREMENTAL, repository=1)
    assert archived.tool.info(1)[0].label == made.label
    found = check(archived)
    assert (found.findings, dict(found.obstacles)) == ((), {})
    history = archived.archive / "00000002.history"
    kept = history.read_bytes()
    history.unlink()
    [finding] = check(archived).findings
    assert finding.text.startswith("00000002.history is missing")
    assert check(archived).obstacles == {(1, made.label): "00000002.history is missing or damaged"}
    history.write_bytes(kept)
    archived.sandbox.adopt("/srv/data/backups")
    on_old = [
        file for file in archived.segments() if file.name.startswith("00000001") and file.name[:24] > made.wal_stop
    ]
    on_old[0].unlink()
    [finding] = check(archived).findings
    assert on_old[0].name[:24] in finding.text
    new = archived.tool.backup(BackupType.FULL, repository=1)
    assert [backup.label for backup in archived.tool.info(1)] == [new.label]
    assert {file.name[:8] for file in archived.segments()} == {"00000002"}
    assert check(archived).findings == ()


def test_the_repository_of_another_database_is_reported_with_the_way_out(archived: ArchivingServer) -> None:
    """As after a removed data directory, which `up` replaces by a new database."""
    archived.stop()
    archived.sandbox.supervisor.remove("postgres")
    shutil.rmtree(archived.sandbox.host_path("/srv/data/postgres"))
    archived.create()
    with pytest.raises(OtherDatabaseError, match=r"move .*/data/backups away and run `observatory up`"):
        archived.tool.prepare()
    with pytest.raises(OtherDatabaseError, match="belongs to another database"):
        archived.tool.backup(BackupType.FULL, repository=1)
    assert "belongs to another database" in findings(archived)[0]


def test_settings_that_up_has_not_written_are_reported(archived: ArchivingServer) -> None:
    file = archived.sandbox.host_path(settings_file(PATHS))
    kept = file.read_text()
    file.unlink()
    try:
        with pytest.raises(BackupError, match="Run `observatory up`"):
            check(archived)
    finally:
        archived.sandbox.write_file(settings_file(PATHS), kept)
    assert json.loads(kept)["retention_days"] == LocalSettings().backups.retention_days
