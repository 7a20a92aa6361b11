"""The check of a real repository, and the expiry of backups, on a real PostgreSQL with pgBackRest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.backups.pgbackrest import (
    BackupDamagedError,
    BackupError,
    BackupType,
    OtherDatabaseError,
    RepositoryUnreadableError,
    create_backup,
    create_stanza,
    list_backups,
)
from observatory.backups.repository import check_repository
from observatory.nodes.cloud_init import PROGRAMS
from observatory.nodes.pgbackrest import cipher_file, cipher_section, command, settings_file
from observatory.settings import LocalSettings
from tests.backups.conftest import PATHS, ArchivingServer

pytestmark = pytest.mark.slow

PAGE = 8192


@pytest.fixture(scope="module")
def archived(server: ArchivingServer) -> ArchivingServer:
    """A full backup, three segments, an incremental backup and three more segments."""
    create_stanza(server.sandbox)
    create_backup(server.sandbox, BackupType.FULL)
    server.archive_segments()
    create_backup(server.sandbox, BackupType.INCREMENTAL)
    server.archive_segments()
    return server


def findings(server: ArchivingServer, *, contents: bool = False) -> list[str]:
    return [each.text for each in check_repository(server.sandbox, contents=contents).findings]


def test_a_sound_repository_has_no_findings(archived: ArchivingServer) -> None:
    found = check_repository(archived.sandbox, contents=True)
    assert (found.findings, dict(found.obstacles)) == ((), {})
    assert "observatory_archive_gaps 0\n" in archived.sandbox.host_path(f"{PATHS.textfiles}/backups.prom").read_text()


@pytest.mark.usefixtures("repository_kept")
@pytest.mark.parametrize("number", [1, -3, -1])
def test_a_removed_segment_is_named_with_the_backups_that_it_cuts_off(archived: ArchivingServer, number: int) -> None:
    """The newest is known to PostgreSQL; pgBackRest's own `verify` and `info` find nothing."""
    full, incremental = (backup.label for backup in list_backups(archived.sandbox))
    start = list_backups(archived.sandbox)[0].wal_start
    segments = [file for file in archived.segments() if file.name[:24] >= start]
    segments[number].unlink()
    missing = segments[number].name[:24]
    assert "status: error" not in archived.sandbox.run(command(PATHS, "verify", "--output=text", "--verbose")).stdout
    [text] = findings(archived)
    assert f"{missing} (missing)" in text
    assert "observatory backup create --type full" in text
    cut_off = {full} if number == 1 else {full, incremental}
    assert check_repository(archived.sandbox).obstacles == dict.fromkeys(cut_off, f"{missing} (missing)")
    assert "observatory_archive_gaps 1\n" in archived.sandbox.host_path(f"{PATHS.textfiles}/backups.prom").read_text()


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
    return "copy observatory/backup.info.copy to that name"


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
        for attempt in (list_backups, create_stanza):
            with pytest.raises(RepositoryUnreadableError, match=r"move .*/data/backups away and run `observatory up`"):
                attempt(archived.sandbox)
        assert "cannot be read" in findings(archived)[0]
    finally:
        archived.sandbox.write_file(cipher_file(PATHS), kept)


def damage(server: ArchivingServer, table: str) -> Path:
    """Flip a byte in the first page of a table's file, and return the file."""
    server.sql(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT generate_series(1, 1000) AS n")
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
    sandbox, sound = archived.sandbox, list_backups(archived.sandbox)[0].label
    archived.set_retention(0)
    damage(archived, "precious")
    for kind in (BackupType.INCREMENTAL, BackupType.FULL, BackupType.DIFFERENTIAL):
        with pytest.raises(
            BackupDamagedError, match=r"damaged pages: base/\d+/\d+ \(precious, database postgres\)"
        ) as error:
            create_backup(sandbox, kind)
        assert error.value.exit_code == 1
    sandbox.run(command(PATHS, "expire"))
    assert [(backup.type, backup.damaged) for backup in list_backups(sandbox)] == [
        ("full", False),
        ("incremental", False),
        ("incremental", True),
        ("full", True),
        ("differential", True),
    ]
    [text] = findings(archived)
    assert "precious" in text
    assert "observatory_backups_damaged 1\n" in sandbox.host_path(f"{PATHS.textfiles}/backups.prom").read_text()
    assert list_backups(sandbox)[0].label == sound
    archived.sql("DROP TABLE precious")
    repaired = create_backup(sandbox, BackupType.FULL)
    assert [backup.label for backup in list_backups(sandbox)] == [repaired.label]
    assert findings(archived) == []


def test_the_program_of_a_machine_makes_and_checks_backups_by_itself(archived: ArchivingServer) -> None:
    sandbox = archived.sandbox
    sandbox.write_file("/srv/etc/backup_repository.py", (PROGRAMS / "backup_repository.py").read_bytes())
    program = ("/usr/bin/python3", "-I", "/srv/etc/backup_repository.py")
    before = len(list_backups(sandbox))
    sandbox.run([*program, "--backup", "incr", settings_file(PATHS)])
    assert len(list_backups(sandbox)) == before + 1
    damage(archived, "valuable")
    done = sandbox.run([*program, "--backup", "full", settings_file(PATHS)], check=False)
    assert done.returncode == 1
    assert "(valuable, database postgres)" in done.stderr
    assert len(list_backups(sandbox)) == before + 2
    archived.sql("DROP TABLE valuable")
    sandbox.run([*program, "--backup", "full", "--contents", settings_file(PATHS)])
    assert findings(archived) == []


def test_a_gap_counts_until_a_full_backup_is_made_after_it_was_found(archived: ArchivingServer) -> None:
    archived.set_retention(30)
    archived.archive_segments()
    archived.segments()[-2].unlink()
    assert len(findings(archived)) == 1
    create_backup(archived.sandbox, BackupType.INCREMENTAL)
    assert len(findings(archived)) == 1
    made = create_backup(archived.sandbox, BackupType.FULL)
    found = check_repository(archived.sandbox)
    assert found.findings == ()
    assert made.label not in found.obstacles
    assert found.obstacles


def test_the_check_follows_a_change_of_the_timeline(archived: ArchivingServer) -> None:
    """A recovery ends on a new timeline; a backup of the old one can be restored to now only with its history."""
    archived.set_retention(0)
    made = create_backup(archived.sandbox, BackupType.FULL)
    archived.archive_segments()
    archived.stop()
    archived.sandbox.write_file("/srv/data/postgres/recovery.signal", "")
    archived.start()
    archived.archive_segments()
    assert any(file.name.startswith("00000002") for file in archived.segments())
    found = check_repository(archived.sandbox)
    assert (found.findings, dict(found.obstacles)) == ((), {})
    history = archived.archive / "00000002.history"
    kept = history.read_bytes()
    history.unlink()
    [finding] = check_repository(archived.sandbox).findings
    assert finding.text.startswith("00000002.history is missing")
    assert check_repository(archived.sandbox).obstacles == {made.label: "00000002.history is missing or damaged"}
    history.write_bytes(kept)
    archived.sandbox.adopt("/srv/data/backups")
    on_old = [
        file for file in archived.segments() if file.name.startswith("00000001") and file.name[:24] > made.wal_stop
    ]
    on_old[0].unlink()
    [finding] = check_repository(archived.sandbox).findings
    assert on_old[0].name[:24] in finding.text


def test_the_repository_of_another_database_is_reported_with_the_way_out(archived: ArchivingServer) -> None:
    """As after a removed data directory, which `up` replaces by a new database."""
    archived.stop()
    archived.sandbox.supervisor.remove("postgres")
    shutil.rmtree(archived.sandbox.host_path("/srv/data/postgres"))
    archived.create()
    with pytest.raises(OtherDatabaseError, match=r"move .*/data/backups away and run `observatory up`"):
        create_stanza(archived.sandbox)
    with pytest.raises(OtherDatabaseError, match="belongs to another database"):
        create_backup(archived.sandbox, BackupType.FULL)
    assert "belongs to another database" in findings(archived)[0]


def test_settings_that_up_has_not_written_are_reported(archived: ArchivingServer) -> None:
    file = archived.sandbox.host_path(settings_file(PATHS))
    kept = file.read_text()
    file.unlink()
    try:
        with pytest.raises(BackupError, match="Run `observatory up`"):
            check_repository(archived.sandbox)
    finally:
        archived.sandbox.write_file(settings_file(PATHS), kept)
    assert json.loads(kept)["retention_days"] == LocalSettings().backups.retention_days
