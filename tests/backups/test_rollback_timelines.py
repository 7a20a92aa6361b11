"""Data that is promoted beside the live server takes a timeline that no archive has."""

from __future__ import annotations

import shutil

import pytest

from observatory.backups.rollback.errors import DatabaseRollbackError, RollbackRefusedError
from observatory.backups.rollback.record import Phase, RollbackRecords
from observatory.backups.rollback.swap import Swap
from observatory.backups.rollback.timelines import HELD, DataDirectory
from observatory.settings import LocalSettings
from tests.backups.conftest import DATA, ArchivingServer
from tests.support.rollbacks import rollback_record

NEWEST = 5  # timeline of the live server


def test_a_promotion_takes_the_timeline_after_the_live_one_and_is_archived_later(server: ArchivingServer) -> None:
    server.tool.prepare()
    server.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 100)")
    server.archive_segments(1)
    server.sql("INSERT INTO kept VALUES (101)")
    directory = DataDirectory(server.sandbox, DATA)
    with pytest.raises(DatabaseRollbackError, match="is 'in production'"):
        directory.check_promoted(NEWEST)
    server.stop()

    directory.promote(NEWEST)
    directory.archive_later(NEWEST)

    control = directory.control()
    assert (control.timeline, control.shut_down) == (NEWEST + 1, True)
    histories = sorted(file.name for file in server.sandbox.host_path(f"{DATA}/pg_wal").glob("*.history"))
    assert histories == ["00000006.history"]
    assert directory.descends_from(NEWEST + 1, 1)
    assert directory.descends_from(1, 1)
    assert not directory.descends_from(1, 1 << 40)  # it was left before
    assert not directory.descends_from(NEWEST, 1)
    directory.promote(NEWEST)  # a killed command's successor
    assert directory.control() == control
    server.start()
    assert server.sql("SELECT count(*) FROM kept") == "101"
    server.archive_segments(2)
    assert (server.archive / "00000006.history").exists()
    assert {segment.name[:8] for segment in server.segments()} == {"00000001", "00000006"}


class Killed(BaseException):
    """Stands for SIGKILL of the command in the midst of a promotion."""


def test_a_promotion_that_was_killed_takes_a_further_timeline_and_both_are_archived(
    server: ArchivingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tool.prepare()
    server.sql("CREATE TABLE killed (n int); INSERT INTO killed VALUES (1)")
    server.archive_segments(1)
    server.stop()
    directory = DataDirectory(server.sandbox, DATA)
    newest = directory.control().timeline + 3
    prints = DataDirectory._prints

    def kill(self: DataDirectory, argv: tuple[str, ...], line: str) -> bool:
        if prints(self, argv, line):
            raise Killed
        return False

    with monkeypatch.context() as patched:
        patched.setattr(DataDirectory, "_prints", kill)
        with pytest.raises(Killed):
            directory.promote(newest)
    held = f"{DATA}/pg_wal/{newest:08X}.history"
    server.sandbox.write_file(held, HELD)  # which SIGKILL leaves

    directory.promote(newest)
    directory.archive_later(newest)

    assert not server.sandbox.host_path(held).exists()
    assert directory.control().timeline == newest + 2
    server.start()
    assert server.sql("SELECT count(*) FROM killed") == "1"
    server.archive_segments(1)
    archived = {file.name for file in server.archive.glob("*.history")}
    assert {f"{number:08X}.history" for number in (newest + 1, newest + 2)} <= archived


def test_the_history_of_a_timeline_comes_from_the_live_directory_if_no_repository_has_it(
    server: ArchivingServer,
) -> None:
    live, other = DataDirectory(server.sandbox, DATA), DataDirectory(server.sandbox, "/srv/data/other")
    server.sandbox.make_directory("/srv/data/other/pg_wal")
    timeline = live.control().timeline
    lines = "1\t0/3000000\tfirst\n\n3\t0/4000000\tthird\n"
    server.sandbox.write_file(f"{DATA}/pg_wal/{timeline:08X}.history", lines)

    other.take_history(3, live)
    other.take_history(1, live)

    assert server.sandbox.host_path("/srv/data/other/pg_wal/00000003.history").read_text() == "1\t0/3000000\tfirst\n"
    with pytest.raises(DatabaseRollbackError, match="no repository has the history of timeline 2"):
        other.take_history(2, live)


def test_an_undo_is_refused_if_what_was_set_aside_is_gone_or_lacks_wal(server: ArchivingServer) -> None:
    record = rollback_record(phase=Phase.DONE)
    swap = Swap(
        sandbox=server.sandbox,
        settings=LocalSettings(),
        records=RollbackRecords(server.sandbox.home),
        administrator="dbname=observatory",
    )
    aside = server.sandbox.host_path(f"/srv/data/{record.outgoing}")
    server.stop()
    with pytest.raises(RollbackRefusedError, match="is no directory any more; nothing was changed"):
        swap.check_set_aside(record)
    shutil.copytree(server.sandbox.host_path(DATA), aside, symlinks=True)
    server.sandbox.adopt(f"/srv/data/{record.outgoing}")
    swap.check_set_aside(record)

    segment = aside / "pg_wal" / swap.directory(record.outgoing).control().segment
    segment.rename(f"{segment}.old")
    with pytest.raises(RollbackRefusedError, match=rf"{segment.name} is missing"):
        swap.check_set_aside(record)
    (aside / "global/pg_control").unlink()
    with pytest.raises(RollbackRefusedError, match="pg_controldata cannot read"):
        swap.check_set_aside(record)


def test_a_directory_without_a_server_is_an_error_that_names_it(server: ArchivingServer) -> None:
    with pytest.raises(DatabaseRollbackError, match=r"pg_controldata cannot read .*data/nothing"):
        DataDirectory(server.sandbox, "/srv/data/nothing").control()
