"""Rollbacks of the stack's database: exact, with everything else in agreement, undone, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from observatory.backups.rollback.record import Phase
from observatory.database.connection import connect, with_database
from tests.support.checkout import Checkout

OWN = """-- A table that the rollback undoes.
CREATE TABLE undone (id integer PRIMARY KEY);
COMMENT ON TABLE undone IS 'Of a test';
"""
# Runs a command of the command line, and kills itself right after it has recorded that a phase begins.
KILLED = """
import os, signal, sys
from observatory.backups.rollback.record import RollbackRecords
from observatory.cli import main
write, phase = RollbackRecords.write, sys.argv.pop(1)
def kill(self, record):
    write(self, record)
    if record.phase == phase:
        os.kill(os.getpid(), signal.SIGKILL)
    return record
RollbackRecords.write = kill
main()
"""
DATABASE = ("rollback", "--method", "database", "--yes")


ADMINISTRATORS: dict[Path, str] = {}  # their URLs by checkout, which no rollback changes


def sql(stack: Checkout, statement: str, database: str = "observatory") -> list[tuple[object, ...]]:
    if stack.root not in ADMINISTRATORS:
        ADMINISTRATORS[stack.root] = stack.output("admin_database_url")
    with connect(with_database(ADMINISTRATORS[stack.root], database), purpose="test") as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def on_server(stack: Checkout, *statements: str) -> None:
    for statement in statements:
        sql(stack, statement, "postgres")


def rename(stack: Checkout, name: str, new: str) -> None:
    on_server(
        stack,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'",
        f"ALTER DATABASE {name} RENAME TO {new}",
        f"ALTER DATABASE {new} ALLOW_CONNECTIONS true",
    )


def databases(stack: Checkout) -> list[object]:
    return [
        row[0] for row in sql(stack, "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1", "postgres")
    ]


def ids(stack: Checkout) -> list[object]:
    return [row[0] for row in sql(stack, "SELECT id FROM users WHERE id LIKE 'rollback-%' ORDER BY id")]


def add(stack: Checkout, name: str) -> str:
    """Commit a row, and return a time between it and every later one."""
    sql(stack, f"INSERT INTO users (id) VALUES ('rollback-{name}')")
    [(time,)] = sql(stack, "SELECT clock_timestamp() FROM pg_sleep(0.01)")
    sql(stack, "SELECT pg_sleep(0.01)")
    assert isinstance(time, datetime)
    return time.isoformat()


def kill(stack: Checkout, phase: Phase, *arguments: str) -> None:
    """Run a command that is killed when a phase of the exchange begins."""
    argv = [sys.executable, "-c", KILLED, str(phase), *arguments]
    variables = {**os.environ, **stack.environment}
    done = subprocess.run(argv, cwd=stack.root, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def directories(stack: Checkout) -> list[str]:
    return [each.name for each in (stack.home / "data").glob("postgres*")]


@pytest.mark.timeout(3600)  # a busy machine takes five times as long
def test_a_rollback_and_an_undo_are_exact_everything_agrees_and_killed_ones_are_finished(checkout: Checkout) -> None:
    checkout.run("up", "--engine", "embedded")
    time = add(checkout, "before")
    (checkout.root / "migrations/500_undone.sql").write_text(OWN)
    checkout.run("deploy", "database")
    add(checkout, "after")
    checkout.run("key", "create", "--name", "since")
    label = checkout.json("backup", "create")[0]["label"]
    planned = checkout.json(*DATABASE, "--to-time", time, "--dry-run")
    assert (planned["schema"]["before"], planned["schema"]["undone"]) == (500, ["500_undone"])
    lost = {each["table"]: (each["lost"], each["returned"]) for each in planned["loss"]["tables"]}
    assert (lost["users"], lost["observatory.schema_migrations"]) == ((1, 0), (1, 0))
    assert ids(checkout) == ["rollback-after", "rollback-before"]

    checkout.run(*DATABASE, "--to-time", time)

    assert ids(checkout) == ["rollback-before"]
    checkout.verify()
    assert "No changes" in checkout.run("preview").stdout
    assert {each["name"]: each["state"] for each in checkout.json("key", "list")}["since"] == "active"
    assert "500_undone.sql" in checkout.run("deploy", "database", "--dry-run").stdout
    _undo_without_data(checkout)
    planned = checkout.json(*DATABASE, "--backup-file", label, "--dry-run")  # of the timeline that was left
    assert {each["table"]: each["returned"] for each in planned["loss"]["tables"]}["users"] == 1

    checkout.run(*DATABASE, "--undo")

    assert ids(checkout) == ["rollback-after", "rollback-before"]
    assert "No changes" in checkout.run("preview").stdout
    assert checkout.exit_code(*DATABASE, "--undo") == 3
    checkout.run("backup", "create")
    _killed(checkout)
    _dropped(checkout)
    _dumped(checkout)


def _undo_without_data(stack: Checkout) -> None:
    """What was set aside is gone: the undo is refused, and the database stays up."""
    (aside,) = (stack.home / "data").glob("postgres-before-*")
    moved = aside.rename(stack.home / "moved")
    for dry_run in ((), ("--dry-run",)):
        assert "is no directory any more" in stack.run(*DATABASE, "--undo", *dry_run, expect=3).stderr
    moved.rename(aside)
    assert ids(stack) == ["rollback-before"]


def _killed(stack: Checkout) -> None:
    """A rollback across the timelines of the first one, killed and finished; its undo likewise."""
    time = add(stack, "late")
    add(stack, "later")
    kill(stack, Phase.SET_ASIDE, *DATABASE, "--to-time", time)
    stack.run("up")
    rolled_back = ["rollback-after", "rollback-before", "rollback-late"]
    assert ids(stack) == rolled_back

    kill(stack, Phase.STOP, *DATABASE, "--undo")
    assert ids(stack) == rolled_back
    kill(stack, Phase.PROMOTE, *DATABASE, "--undo")
    kill(stack, Phase.UP, *DATABASE, "--undo")
    stack.run(*DATABASE, "--undo")
    assert len(ids(stack)) == 4
    stack.run("backup", "verify")
    stack.run("backup", "discard", "--yes")
    assert directories(stack) == ["postgres"]


def _dropped(stack: Checkout) -> None:
    """A database that was renamed, dropped or made again empty: nothing fills it, and a rollback brings it back."""
    time = add(stack, "last")
    rename(stack, "observatory", "renamed")
    named_back = 'ALTER DATABASE "renamed" RENAME TO "observatory"'
    assert named_back in stack.run("up", "--engine", "embedded", expect=3).stderr
    assert named_back in stack.run(*DATABASE, "--to-time", time, "--dry-run", expect=3).stderr
    assert databases(stack) == ["postgres", "renamed"]
    rename(stack, "renamed", "observatory")
    stack.configure(database={"name": "another"})
    assert "the stack's database is 'observatory'" in stack.run("up", "--engine", "embedded", expect=2).stderr
    stack.configure(database={})

    stack.run("backup", "dump", "before.dump")
    on_server(stack, "DROP DATABASE observatory WITH (FORCE)")
    assert "does not exist on the running server" in stack.run("up", "--engine", "embedded", expect=3).stderr
    assert stack.exit_code("deploy", "database") == 3
    stack.run(*DATABASE, "--backup-file", "before.dump", "--dry-run")
    assert databases(stack) == ["postgres"]
    [(after,)] = sql(stack, "SELECT clock_timestamp()", "postgres")
    assert isinstance(after, datetime)

    on_server(stack, "CREATE DATABASE observatory")
    assert "has no ledger of migrations any more" in stack.run("up", "--engine", "embedded", expect=3).stderr
    late = stack.run(*DATABASE, "--to-time", after.isoformat(), "--dry-run", expect=3).stderr
    assert "the database 'observatory' did not exist" in late
    assert "rows of before: not known" in stack.run(*DATABASE, "--to-time", time, "--dry-run").stdout
    assert databases(stack) == ["observatory", "postgres"]
    on_server(stack, "DROP DATABASE observatory WITH (FORCE)")
    done = stack.run(*DATABASE, "--to-time", time).stdout

    assert "rows of before: not known, the database was dropped" in done
    assert "--undo" not in done
    assert len(ids(stack)) == 5
    stack.verify()
    assert "dropped or emptied" in stack.run(*DATABASE, "--undo", expect=3).stderr


def _dumped(stack: Checkout) -> None:
    """A rollback to a dump schedules the operator's own jobs of pg_cron again, and those of the schema once."""
    own = "SELECT cron.schedule('own', '0 3 * * *', 'SELECT 1')"
    jobs = "SELECT jobname, schedule, command, username, active FROM cron.job ORDER BY jobname"
    sql(stack, own)
    then = sql(stack, jobs)
    stack.run("backup", "dump", "own.dump")
    sql(stack, "SELECT cron.unschedule('own')")
    stack.run(*DATABASE, "--backup-file", "own.dump")
    assert sql(stack, jobs) == then
    stack.verify()
    stack.run(*DATABASE, "--undo")
    assert len(sql(stack, jobs)) == len(then) - 1
