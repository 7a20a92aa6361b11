"""Restore drills on a real repository: a sound one passes, and each kind of damage fails it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from observatory.backups import drill as drill_module
from observatory.backups.drill import Drill, DrillRefusedError
from observatory.backups.receipts import Receipt, ReceiptStore
from observatory.backups.recording import record_after_backup
from observatory.backups.repository_contents import UncoveredTargetError
from observatory.backups.restored import RestoredInstance, restored_instance
from observatory.backups.scratch import scratch_directories
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupType
from observatory.backups.values import ValueStore
from observatory.security.signatures import make_private_key
from observatory.settings import LocalSettings
from tests.backups.conftest import ArchivingServer

pytestmark = pytest.mark.slow

DATABASE = LocalSettings().database.name
TABLES = """
    CREATE TABLE kept (id int PRIMARY KEY, text text);
    INSERT INTO kept SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 2000) n
"""
Damage = Callable[[RestoredInstance], None]


@pytest.fixture(scope="module")
def live(server: ArchivingServer) -> ArchivingServer:
    """A server with a full backup, recorded values, and transactions after both."""
    server.tool.prepare()
    server.sql(f"CREATE DATABASE {DATABASE}")
    server.sql_in(DATABASE, TABLES)
    made = server.tool.backup(BackupType.FULL, repository=1)
    record_after_backup(server.sandbox, seconds=(made.ended - made.started).total_seconds())
    server.sql_in(DATABASE, "INSERT INTO kept VALUES (9000, 'after the values')")
    server.archive_segments(2)
    return server


@pytest.fixture
def store(live: ArchivingServer, tmp_path: Path) -> Iterator[ReceiptStore]:
    (tmp_path / "key").write_text(make_private_key())
    yield ReceiptStore(sandbox=live.sandbox, key_file=tmp_path / "key")
    assert scratch_directories(live.sandbox) == []


def run(store: ReceiptStore, **fields: Any) -> Receipt:
    return Drill(store=store, stack="local", **{"target": RecoveryTarget.latest(), **fields}).run()


def failures(receipt: Receipt) -> dict[str, str]:
    assert receipt.result == "failed"
    return {each.name: each.detail for each in receipt.checks if each.result == "failed"}


def test_a_drill_of_sound_backups_passes_and_its_receipt_says_what_it_proved(
    live: ArchivingServer, store: ReceiptStore
) -> None:
    receipt = run(store)

    assert [(each.name, each.result) for each in receipt.checks] == [
        (name, "passed") for name in ("cover", "restore", "isolation", "values", "target", "pages")
    ]
    assert store.all() == [receipt]
    assert Drill(store=store, stack="local", target=RecoveryTarget.latest()).next_repository() == 2
    assert (receipt.result, receipt.repository, receipt.target) == ("passed", 1, "latest")
    assert receipt.rto_seconds is not None
    assert receipt.rpo_seconds is not None
    assert receipt.last_transaction is not None
    assert receipt.last_transaction > ValueStore(live.sandbox).all()[-1].recorded
    values = next(each.detail for each in receipt.checks if each.name == "values")
    assert values.startswith("2000 rows in ")  # without the row that was written afterwards
    assert "(100% of the data)" in values
    assert live.sql_in(DATABASE, "SELECT count(*) FROM kept") == "2001"


def test_one_row_that_differs_fails_the_drill(live: ArchivingServer, store: ReceiptStore) -> None:
    recorded = ValueStore(live.sandbox).all()[-1]
    pieces = [each.model_copy(update={"rows": each.rows + 1}) for each in recorded.pieces]
    ValueStore(live.sandbox).add(recorded.model_copy(update={"pieces": tuple(pieces)}))
    try:
        found = failures(run(store))
    finally:
        ValueStore(live.sandbox).add(recorded)
    assert list(found) == ["values"]
    assert "public.kept, blocks 0 to the end: 2000 rows, recorded were 2001" in found["values"]


@contextmanager
def damaged(monkeypatch: pytest.MonkeyPatch, damage: Damage) -> Iterator[None]:
    """Damage each restored instance before it is examined."""

    @contextmanager
    def restored(*arguments: Any, **options: Any) -> Iterator[RestoredInstance]:
        with restored_instance(*arguments, **options) as instance:
            instance.stop()
            damage(instance)
            instance.start()
            yield instance

    with monkeypatch.context() as patched:
        patched.setattr(drill_module, "restored_instance", restored)
        yield


def data_file(live: ArchivingServer, relation: str) -> str:
    return live.sql_in(DATABASE, f"SELECT pg_relation_filepath('{relation}')")


def flip(instance: RestoredInstance, path: str, *, page: int, byte: int) -> None:
    file = instance.directory.host / "postgres" / path
    content = bytearray(file.read_bytes())
    content[page * 8192 + byte] ^= 1
    file.write_bytes(content)


def test_a_damaged_page_of_a_table_fails_the_drill(
    live: ArchivingServer, store: ReceiptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_file(live, "kept")
    with damaged(monkeypatch, lambda instance: flip(instance, path, page=3, byte=5000)):
        found = failures(run(store))
    assert "invalid page in block 3" in found["values"]


def test_a_row_that_an_index_lacks_fails_the_drill(live: ArchivingServer, store: ReceiptStore) -> None:
    """Every checksum is right: only a comparison of the index with its table finds it."""
    live.sql_in(DATABASE, "CREATE TABLE torn (id int); CREATE INDEX torn_id ON torn (id)")
    live.sql_in(DATABASE, "UPDATE pg_index SET indisready = false WHERE indexrelid = 'torn_id'::regclass")
    live.sql_in(DATABASE, "INSERT INTO torn VALUES (1)")
    live.sql_in(DATABASE, "UPDATE pg_index SET indisready = true WHERE indexrelid = 'torn_id'::regclass")
    try:
        found = failures(run(store))
    finally:
        live.sql_in(DATABASE, "DROP TABLE torn")
    assert list(found) == ["pages"]
    assert "torn" in found["pages"]


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """Change a file of the repository, or remove it, for the block."""
    before = file.read_bytes()
    status = file.stat()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)
        os.chown(file, status.st_uid, status.st_gid)


def flipped(file: Path) -> bytes:
    """Return the content of a file with one other bit in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def test_a_missing_wal_segment_fails_the_drill(live: ArchivingServer, store: ReceiptStore) -> None:
    live.archive_segments(2)
    with changed(live.segments()[-2], None):
        found = failures(run(store))
    assert list(found) == ["cover"]
    assert "the archive has a gap" in found["cover"]


def test_a_damaged_wal_segment_fails_the_drill(live: ArchivingServer, store: ReceiptStore) -> None:
    """Damage behind the last record of a segment that was ended early harms no restore: this one is full of records."""
    live.archive_segments(1)
    before = len(live.segments())
    live.sql_in(DATABASE, "INSERT INTO kept SELECT n, gen_random_uuid() FROM generate_series(10000, 59999) AS n")
    live.archive_segments(1)
    segment = live.segments()[before + 1]
    assert before + 2 < len(live.segments())
    with changed(segment, flipped(segment)):
        found = failures(run(store))
    live.sql_in(DATABASE, "DELETE FROM kept WHERE id >= 10000")
    assert set(found) <= {"cover", "restore", "target"}


def test_a_damaged_file_of_the_backup_fails_the_drill(live: ArchivingServer, store: ReceiptStore) -> None:
    backup = max(each for each in (live.repository / "backup/observatory").glob("*F") if each.is_dir())
    file = max((each for each in backup.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
    with changed(file, flipped(file)):
        found = failures(run(store))
    assert list(found) == ["restore"]


def test_a_time_before_every_recorded_value_is_refused_and_leaves_no_receipt(
    live: ArchivingServer, store: ReceiptStore
) -> None:
    first = ValueStore(live.sandbox).all()[0].recorded
    with pytest.raises((DrillRefusedError, UncoveredTargetError)) as raised:
        run(store, target=RecoveryTarget.at_time(first - timedelta(hours=1)))
    assert raised.value.exit_code == 3
    assert store.all() == []


def test_a_repository_that_does_not_exist_is_refused_and_fails_no_drill(store: ReceiptStore) -> None:
    with pytest.raises(UncoveredTargetError, match="there is no repository 9"):
        run(store, repository=9)
    assert store.all() == []


def test_a_drill_ends_at_a_time(live: ArchivingServer, store: ReceiptStore) -> None:
    server_time = live.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')")
    time = datetime.fromisoformat(server_time).replace(tzinfo=UTC)
    live.sql_in(DATABASE, "INSERT INTO kept VALUES (9999, 'later')")
    live.archive_segments(1)

    receipt = run(store, target=RecoveryTarget.at_time(time))

    assert receipt.result == "passed"
    assert receipt.proves == time
    assert receipt.last_transaction is not None
    assert receipt.last_transaction <= time


def test_without_recorded_values_a_drill_records_them_first(live: ArchivingServer, store: ReceiptStore) -> None:
    for values in ValueStore(live.sandbox).all():
        live.sandbox.remove_file(f"/srv/data/backup-values/{values.name}.json")
    receipt = run(store)
    assert receipt.result == "passed"
    assert receipt.values == ValueStore(live.sandbox).all()[-1].name
