"""A backup repository may be outside of the stack's home, and no directory of another stack or disk is used for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from observatory.backups.cover import find_cover
from observatory.backups.repository_places import MARK, RepositoryPlaceError, check_places, use_places
from observatory.backups.restored import restored_instance
from observatory.backups.scratch import scratch_directory
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupType, RepositoryUnwritableError
from observatory.backups.verified import VerifiedBackups
from observatory.errors import REFUSED
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import outside_repository, repository
from observatory.runtime import Sandbox, mounts
from observatory.settings.local import BackupRepository
from tests.backups.conftest import ArchivingServer
from tests.support.ports import free_ports

pytestmark = pytest.mark.slow

INFO = "archive/observatory/archive.info"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("disk") / "repository"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture(scope="module")
def server(rootfs: Path, tmp_path_factory: pytest.TempPathFactory, outside: Path) -> Iterator[ArchivingServer]:
    """A server whose second repository is outside of its home, with a backup in each."""
    sandbox = Sandbox(tmp_path_factory.mktemp("archiving") / "home", rootfs)
    started = ArchivingServer(sandbox, free_ports()["postgres"], (BackupRepository(), BackupRepository(path=outside)))
    try:
        started.create()
        started.tool.prepare()
        for number in started.tool.repositories:
            started.tool.backup(BackupType.FULL, repository=number)
        started.archive_segments(1)
        yield started
    finally:
        started.sandbox.stop()


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Sandbox:
    """Of a stack that was never up."""
    return Sandbox(tmp_path / "home", rootfs)


def refusal(sandbox: Sandbox, wanted: dict[int, Path]) -> str:
    with pytest.raises(RepositoryPlaceError) as caught:
        check_places(sandbox, wanted)
    assert caught.value.exit_code == REFUSED
    assert caught.value.remedy
    return str(caught.value)


def moved(server: ArchivingServer, copy: Path, tmp_path: Path) -> Sandbox:
    """Return a sandbox over a home whose second repository was moved to `copy`, without the setting."""
    server.archive_segments(1)  # all that waited is archived: the archiver changes no file while it is copied
    home, old = tmp_path / "home", server.sandbox.home
    (home / "data/postgres/global").mkdir(parents=True)
    for path in (path for path in old.iterdir() if path.name not in ("data", "run", "mounts")):
        copy_as_is(path, home / path.name)
    for name in ("", "data", "data/postgres", "data/postgres/global"):
        shutil.copystat(old / name, home / name)
        os.chown(home / name, (old / name).stat().st_uid, (old / name).stat().st_gid)
    copy_as_is(old / "data/postgres/global/pg_control", home / "data/postgres/global/pg_control")
    copy_as_is(server.tool.place(2), copy)
    (copy / MARK).unlink()
    return replace(server.sandbox, home=home)


def copy_as_is(old: Path, new: Path) -> None:
    subprocess.run(["cp", "--archive", str(old), str(new)], check=True)


def test_backups_wal_and_restores_use_a_repository_outside_of_the_home(server: ArchivingServer, outside: Path) -> None:
    assert server.tool.place(2) == outside
    assert (outside / INFO).is_file()
    assert not server.sandbox.host_path(repository(Paths(), 2)).exists()
    files = [path for path in outside.rglob("*") if path.name != MARK]
    assert {path.stat().st_mode & 0o7777 for path in files} == {0o600, 0o700}
    assert outside.stat().st_mode & 0o7777 == 0o700
    assert not server.tool.verify(2, contents=True).contents
    cover = find_cover(server.sandbox, RecoveryTarget.latest(), repository=2)
    place = outside_repository(2)
    with (
        scratch_directory(server.sandbox, "test") as directory,
        restored_instance(cover, directory=directory) as instance,
    ):
        assert "archive" in instance.run(["/bin/sh", "-c", f"ls {place}; touch {place}/x"], check=False).stdout
        with instance.connect() as connection:
            assert connection.execute("SELECT count(*) > 0 FROM written").fetchone() == (True,)
    assert not (outside / "x").exists()


def test_a_backup_outside_of_the_home_counts_as_compared_until_a_file_of_it_changes(
    server: ArchivingServer, outside: Path
) -> None:
    verified, label = VerifiedBackups(server.sandbox, 2), server.tool.info(2)[0].label
    verified.add(label)
    assert verified.has(label)
    (outside / "backup/observatory" / label / "backup.manifest").touch()
    assert not verified.has(label)


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        ((0, 0), " is full: its disk has 0.0 MiB left"),
        ((2**20, os.ST_RDONLY), " is read-only"),
        ((2**14, 0), ", and of the 64 MiB that are available 512 MiB stay free for WAL"),
    ],
)
def test_a_full_or_read_only_repository_is_named_at_once_and_the_other_gets_its_backup(
    server: ArchivingServer, monkeypatch: pytest.MonkeyPatch, disk: tuple[int, int], message: str
) -> None:
    outside, (free, flags) = server.tool.place(2), disk
    real = os.statvfs

    def statvfs(path: Path) -> object:
        if Path(path) == outside:
            return SimpleNamespace(f_bavail=free, f_frsize=4096, f_flag=flags)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(RepositoryUnwritableError, match=re.escape(f"backup repository 2 ({outside}){message}")):
        server.tool.backup(BackupType.FULL, repository=2)
    assert server.tool.backup(BackupType.INCREMENTAL, repository=1).repository == 1


def test_a_repository_whose_disk_is_gone_does_not_keep_the_server_down(server: ArchivingServer, outside: Path) -> None:
    away = outside.with_name("away")
    server.sandbox.stop()
    outside.rename(away)
    try:
        server.sandbox.start()
        server.start()
        assert "does not exist" in refusal(server.sandbox, {2: outside})
        outside.mkdir(mode=0o700)
        assert "Mount its disk" in refusal(server.sandbox, {2: outside})
        outside.rmdir()
    finally:
        away.rename(outside)
    pid = server.sandbox.supervisor_pid()
    assert pid
    assert not mounts.are_seen(server.sandbox.home, pid)  # the next `up` starts the sandbox again
    server.sandbox.stop()
    server.sandbox.start()
    pid = server.sandbox.supervisor_pid()
    assert pid
    assert mounts.are_seen(server.sandbox.home, pid)
    server.start()
    check_places(server.sandbox, {2: outside})


def test_a_moved_repository_is_continued_and_none_is_left_behind(
    server: ArchivingServer, tmp_path: Path, outside: Path
) -> None:
    new = tmp_path / "new"
    sandbox = moved(server, new, tmp_path)
    check_places(sandbox, {2: new})
    inside = sandbox.home / "data/backups-2"
    shutil.copytree(new, inside)
    assert "both have backups" in refusal(sandbox, {2: new})
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"mv {inside}/* {empty}/" in refusal(sandbox, {2: empty})
    shutil.rmtree(inside)
    assert "cannot be read as repository 1" in refusal(sandbox, {1: new})
    assert "is that of repository 2 of the stack in" in refusal(sandbox, {2: outside})
    # Out of the setting again: what is outside is not left behind either.
    assert "and the setting moves it to" in refusal(server.sandbox, {})


def test_a_directory_that_is_not_the_stack_s_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert "does not exist" in refusal(sandbox, {1: place})
    place.write_text("")
    assert "is no directory" in refusal(sandbox, {1: place})
    place.unlink()
    place.mkdir()
    (place / "lost+found").mkdir()
    check_places(sandbox, {1: place})
    (place / "photographs").mkdir()
    assert "has files that are not a repository's: photographs" in refusal(sandbox, {1: place})
    (place / "photographs").rmdir()
    (place / "archive/observatory").mkdir(parents=True)
    (place / INFO).write_text("another stack's")
    assert "has no passphrase of repository 1" in refusal(sandbox, {1: place})
    inside = sandbox.home / "data/mine"
    inside.mkdir(parents=True)
    assert "is not outside of the stack's home" in refusal(sandbox, {1: inside})
    assert "is not outside of the stack's home" in refusal(sandbox, {1: tmp_path})
    assert not (sandbox.home / "mounts").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, 1, 1)  # an account of every machine
    assert "belongs to the user 1" in refusal(sandbox, {1: place})


def test_a_directory_serves_one_repository_of_one_stack(sandbox: Sandbox, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    use_places(sandbox, {1: place})
    use_places(sandbox, {1: place})  # as the next `up`
    assert place.stat().st_mode & 0o7777 == 0o700
    check_places(sandbox, {1: place})
    assert "is that of repository 1" in refusal(sandbox, {2: place})
    other = replace(sandbox, home=tmp_path / "other")
    assert f"of the stack in {sandbox.home}" in refusal(other, {1: place})
    use_places(sandbox, {})
    assert not mounts.recorded(sandbox.home)
