"""Backups on a real stack, by the command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from components.local.backups import StanzaProvider
from observatory.backups.dump_restore import restore_cron_jobs, restore_dump
from observatory.backups.dump_server import DumpServer
from observatory.backups.pgbackrest import SWITCH, PgBackRest
from observatory.backups.tool import BackupError, BackupType
from observatory.database.connection import connect, with_database
from observatory.files.locks import exclusive
from tests.stack.test_monitoring import Monitoring, check_backups, sandbox, wait
from tests.support.checkout import UP_TIMEOUT_S, Checkout

CRON_JOBS = "SELECT jobname, schedule, command, nodeport, database, username, active FROM cron.job ORDER BY jobname"


def backup_lock(stack: Checkout) -> AbstractContextManager[int]:
    """Hold the lock of a backup, in a file of the daemons' user."""
    sandbox(stack).open_append("/srv/run/pgbackrest/observatory-backup-1.lock").close()
    return exclusive(stack.home / "run/pgbackrest/observatory-backup-1.lock")


def test_each_backup_type_has_its_base_and_is_a_run_of_its_job(stack: Checkout) -> None:
    """The full ones are those of `up`; a backup by hand is a run of its job, too."""
    differentials = stack.json("backup", "create", "--type", "differential")
    jobs = {each["name"]: each for each in stack.well_status()["jobs"]}
    incrementals = stack.json("backup", "create")
    assert [each["repository"] for each in differentials] == [each["repository"] for each in incrementals] == [1, 2]
    every = stack.json("backup", "list")
    for differential, incremental in zip(differentials, incrementals, strict=True):
        listed = [each for each in every if each["repository"] == incremental["repository"]]
        assert listed[0]["type"] == "full"
        assert (differential["type"], incremental["type"]) == ("differential", "incremental")
        assert incremental["prior"] == differential["label"]
        labels = [backup["label"] for backup in listed]
        assert labels[-2:] == [differential["label"], incremental["label"]]
        assert differential["prior"] in labels
        assert incremental["repository_bytes"] < listed[0]["repository_bytes"]
        assert not any(backup["damaged"] for backup in listed)
    assert jobs["backup-full"]["result"] == "succeeded"
    assert jobs["backup-full"]["last_success"] >= next(each for each in every if each["type"] == "full")["ended"]
    ended = datetime.fromisoformat(differentials[-1]["ended"])
    assert datetime.fromisoformat(jobs["backup-differential"]["last_success"]) == ended


def test_a_repository_that_does_not_exist_is_named(stack: Checkout) -> None:
    for command in (("create",), ("list",), ("verify",)):
        failed = stack.json("backup", *command, "--repository", "3", expect=1)
        assert "there is no backup repository 3" in failed["error"]["message"]


def test_a_second_backup_at_once_is_refused_and_one_past_its_timeout_is_stopped_and_reported(stack: Checkout) -> None:
    """pgBackRest's own lock is held here, as a backup at work holds it. The backup after both succeeds."""
    tool = PgBackRest(sandbox(stack))
    before = tool.info(1)
    with backup_lock(stack):
        refused = stack.json("backup", "create", expect=3)
    assert "another backup is running" in refused["error"]["message"]
    with pytest.raises(BackupError, match=r"pgbackrest backup did not finish within 0\.1 s and was stopped"):
        tool.backup(BackupType.FULL, repository=1, timeout=0.1)
    assert tool.info(1) == before
    assert {each["type"] for each in stack.json("backup", "create")} == {"incremental"}


def test_the_stanza_waits_for_the_backup_that_a_killed_up_began(stack: Checkout) -> None:
    props = {"home": str(stack.home), "rootfs": stack.environment["OBSERVATORY_ROOTFS"]}
    with ThreadPoolExecutor() as pool:
        with backup_lock(stack):
            made = pool.submit(StanzaProvider().create, props)
            with pytest.raises(TimeoutError):
                made.result(timeout=2)
        assert made.result(timeout=UP_TIMEOUT_S).id == "observatory"  # PostgreSQL's archiver may wait a minute


def test_a_removed_segment_fails_verify_and_is_published_for_the_alert(stack: Checkout) -> None:
    """tests/backups has each kind of damage; this one shows that the commands and the scheduled job report it."""
    sandbox(stack).run(["psql", "-h", "/srv/run/postgresql", *_port(stack), "-U", "postgres", "-c", SWITCH])
    made = stack.json("backup", "create")[0]
    start = PgBackRest(sandbox(stack)).info(1)[0].wal_start
    file = next(stack.home.glob(f"data/backups/archive/observatory/17-1/*/{made['wal_start']}-*.zst"))
    kept = file.read_bytes()
    assert file.name[:24] > start
    file.unlink()
    try:
        checks = {check["name"]: check for check in stack.json("verify", expect=1)["checks"]}
        assert f"{made['wal_start']} (missing)" in checks["backups"]["detail"]
        assert stack.json("backup", "list")[0]["obstacle"] == f"{made['wal_start']} (missing)"
        assert "no: " in stack.run("backup", "list").stdout
        assert f"{made['wal_start']} (missing)" in stack.run("backup", "verify", expect=1).stdout
        check_backups(stack)
        assert 'observatory_archive_gaps{repository="1"} 1\n' in (stack.home / "data/textfile/backups.prom").read_text()
    finally:
        sandbox(stack).write_file(f"/srv/{file.relative_to(stack.home)}", kept)
    assert stack.json("backup", "verify") == {"findings": [], "obstacles": {}}


def test_a_backup_with_damaged_pages_fails_names_the_table_and_pages(stack: Checkout) -> None:
    monitoring, page = Monitoring(stack), ("StorageBackupDamaged", "firing")
    pages = monitoring.received("pagerduty").count(page)
    console = ["psql", "-h", "/srv/run/postgresql", *_port(stack), "-U", "postgres", "-XAtqc"]
    # Nothing may write the page again over the damage: neither the autovacuum nor hint bits of a later reader.
    create = "CREATE TABLE precious WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 1000) AS n"
    for statement in (create, "VACUUM precious"):
        sandbox(stack).run([*console, statement])
    sandbox(stack).run([*console, "CHECKPOINT"])
    path = sandbox(stack).run([*console, "SELECT pg_relation_filepath('precious')"]).stdout.strip()
    with (stack.home / "data/postgres" / path).open("r+b") as file:
        file.seek(4096)
        file.write(b"damage")
    try:
        failed = stack.json("backup", "create", "--type", "full", expect=1)["error"]["message"]
        assert f"{path} (precious, database postgres)" in failed
        assert "do not expire" in failed
        checks = {check["name"]: check for check in stack.json("verify", expect=1)["checks"]}
        assert path in checks["backups"]["detail"]
        assert (
            'observatory_backups_damaged{repository="1"} 1\n' in (stack.home / "data/textfile/backups.prom").read_text()
        )
        wait(lambda: monitoring.received("pagerduty").count(page) > pages)
    finally:
        sandbox(stack).run([*console, "DROP TABLE precious"])
    stack.run("backup", "create", "--type", "full")
    assert stack.json("backup", "verify")["findings"] == []
    wait(lambda: "StorageBackupDamaged" not in monitoring.firing())


def test_a_drill_pages_while_wal_is_missing_and_passes_afterwards(stack: Checkout) -> None:
    """tests/backups has each kind of damage; this one shows the command, the receipt, its metrics and the alert."""
    monitoring, page = Monitoring(stack), ("StorageRestoreDrillStale", "firing")
    pages = monitoring.received("pagerduty").count(page)
    console = ["psql", "-h", "/srv/run/postgresql", *_port(stack), "-U", "postgres", "-XAtq"]
    stack.run("backup", "create", "--repository", "1")
    content = "SELECT pg_logical_emit_message(true, 'test', 'a segment with content')"
    name, _ = [sandbox(stack).run([*console, "-c", content, "-c", SWITCH]).stdout.split()[-1] for _ in range(2)]
    archived = f"data/backups/archive/observatory/17-1/{name[:16]}/{name}-*.zst"
    wait(lambda: bool(list(stack.home.glob(archived))))
    [file] = stack.home.glob(archived)
    kept = file.read_bytes()
    file.unlink()
    try:
        failed = stack.json("backup", "restore-test", "--repository", "1", expect=1)
        assert [each["name"] for each in failed["checks"] if each["result"] == "failed"] == ["cover"]
        wait(lambda: monitoring.received("pagerduty").count(page) > pages)
    finally:
        sandbox(stack).write_file(f"/srv/{file.relative_to(stack.home)}", kept)
    passed = stack.json("backup", "restore-test", "--repository", "1")
    assert {each["result"] for each in passed["checks"]} == {"passed"}
    assert passed["rto_seconds"] > 0
    assert passed["values"]
    assert list((stack.home / "data/restore").glob("drill-*")) == []
    wait(lambda: "StorageRestoreDrillStale" not in monitoring.firing())
    assert monitoring.query('observatory_restore_drill_rto_seconds{repository="1"}')


def test_up_makes_a_new_repository_after_the_old_one_was_moved_away(stack: Checkout) -> None:
    (stack.home / "data/backups").rename(stack.root / "given-up")
    assert "move" in stack.json("backup", "list", "--repository", "1", expect=1)["error"]["message"]
    assert {each["repository"] for each in stack.json("backup", "list")} == {2}
    steps = stack.json("up", "--engine", "embedded")["steps"]
    assert "stanza" in {step["urn"].rpartition("::")[2] for step in steps if step["operation"] == "update"}
    [made] = stack.json("backup", "list", "--repository", "1")
    assert (made["type"], made["obstacle"]) == ("full", "")
    assert stack.json("backup", "verify")["findings"] == []


def _port(stack: Checkout) -> tuple[str, str]:
    return "-p", str(stack.ports()["postgres"])


def test_a_backup_of_a_stack_that_is_not_up_is_refused(checkout: Checkout) -> None:
    assert "`observatory up`" in checkout.run("backup", "create", expect=3).stderr
    assert "is not up" in checkout.run("backup", "verify", expect=3).stderr
    assert "is not up" in checkout.run("backup", "list", expect=3).stderr


def test_a_dump_is_restored_beside_the_database_with_every_row(stack: Checkout, tmp_path: Path) -> None:
    file = tmp_path / "stack.dump"
    made = stack.json("backup", "dump", str(file))
    key = Path(made["key_file"])
    assert (file.stat().st_mode & 0o777, key.stat().st_mode & 0o777) == (0o600, 0o600)
    assert made["rows"]["hypertables"]['"public"."llm_traces"'] > 0
    assert (
        "exists, and a dump overwrites nothing" in stack.json("backup", "dump", str(file), expect=3)["error"]["message"]
    )
    admin = str(stack.json("outputs")["admin_database_url"])
    server = DumpServer(sandbox=sandbox(stack), admin=admin, port=int(conninfo_to_dict(admin)["port"] or 0))
    try:
        manifest = restore_dump(file, into=server, database="restored", key=key.read_text(), known=made["migrations"])
        with connect(with_database(admin, "restored"), purpose="test") as connection:
            found = connection.execute("SELECT count(*) FROM llm_traces").fetchone()
        assert found == (made["rows"]["hypertables"]['"public"."llm_traces"'],)
        with connect(with_database(admin, "observatory"), purpose="test") as connection:
            jobs = connection.execute(CRON_JOBS).fetchall()
            restore_cron_jobs(with_database(admin, "observatory"), manifest.cron_jobs)
            assert jobs
            assert connection.execute(CRON_JOBS).fetchall() == jobs
    finally:
        with connect(admin, purpose="test") as connection:
            connection.execute("DROP DATABASE IF EXISTS restored WITH (FORCE)")


def test_lost_rows_come_back_beside_later_writes(stack: Checkout) -> None:
    admin = make_conninfo(str(stack.json("outputs")["admin_database_url"]), dbname="observatory")
    line = "INSERT INTO llm_logs (ts, log_level, message) SELECT now() - INTERVAL '1 hour', 'INFO', 'flashback ' || n "
    mine = "message LIKE 'flashback %'"
    with psycopg.connect(admin, autocommit=True) as live:
        live.execute(f"{line} FROM generate_series(1, 10) n".encode())
        time = str(live.execute("SELECT clock_timestamp()").fetchall()[0][0])
        live.execute(b"DELETE FROM llm_logs WHERE message IN ('flashback 1', 'flashback 2', 'flashback 3')")
        live.execute(f"{line} FROM generate_series(11, 11) n".encode())
        flashback = ("backup", "flashback", "--to-time", time, "--table", "llm_logs", "--where", mine)
        try:
            assert stack.json(*flashback)["difference"]["missing"] == 3
            found = stack.json(*flashback, "--restore-missing")
            assert found["difference"]["restored"]["inserted"] == 3
            left = live.execute(f"SELECT count(DISTINCT message), count(*) FROM llm_logs WHERE {mine}".encode())
            assert left.fetchone() == (11, 11)
            with psycopg.connect(found["clone"]["conninfo"]) as clone:
                assert clone.execute(f"SELECT count(*) FROM llm_logs WHERE {mine}".encode()).fetchone() == (10,)
            [listed] = stack.json("backup", "flashback", "list")
            assert listed["name"] == found["clone"]["name"]
            assert (
                "is in the future"
                in stack.run("backup", "flashback", "--to-time", "9000-01-01T00:00:00Z", expect=3).stderr
            )
            assert "no time zone" in stack.run("backup", "flashback", "--to-time", "2026-01-01", expect=2).stderr
        finally:
            stack.run("backup", "flashback", "close", expect=2)  # it may be another operator's
            stack.run("backup", "flashback", "close", "--all")
            live.execute(f"DELETE FROM llm_logs WHERE {mine}".encode())
    assert stack.json("backup", "flashback", "list") == []
    assert not list(stack.home.glob("data/restore/*"))
