"""pgBouncer replaces its connections after migrations, so that prepared statements fit the changed tables."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from observatory.nodes import Paths, pooler_console
from observatory.nodes.aws import pooler_warning
from observatory.nodes.pooler_console import console_command, reconnect
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.sandboxes import sandboxed
from tests.support.waiting import until

PASSWORD = "a-password"


@dataclass(frozen=True)
class Pooler:
    """A pooler before one database: its URL, its port, its process, and how to run a command beside it."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    run: Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console that is there answers, however busy the machine is."""
    monkeypatch.setattr(pooler_console, "ANSWER_SECONDS", 60.0)


@pytest.fixture
def pooler(postgres: PostgresServer, tmp_path: Path) -> Iterator[Pooler]:
    """A pooler as the stack configures it: prepared statements, and a console on its socket."""
    port, role = free_port(), "pooled"
    (tmp_path / "run").mkdir()
    (tmp_path / "users").write_text(f'"{role}" "{PASSWORD}"\n', encoding="utf-8")

    def run(
        argv: Sequence[str], *, timeout: float | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = sandboxed(postgres.rootfs, tmp_path, list(argv), read_only=False)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=check)

    with postgres.fresh_database() as name, postgres.superuser(name) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
        admin.execute(f"CREATE TABLE things (id int); GRANT SELECT ON things TO {role}".encode())
        (tmp_path / "pgbouncer.ini").write_text(
            f"[databases]\n{name} = host={postgres.host} port={postgres.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = scram-sha-256\n"
            "auth_file = /srv/users\nunix_socket_dir = /srv/run\npool_mode = transaction\n"
            "max_prepared_statements = 200\n",
            encoding="utf-8",
        )
        command = sandboxed(
            postgres.rootfs, tmp_path, ["/usr/sbin/pgbouncer", "-q", "/srv/pgbouncer.ini"], read_only=False
        )
        with subprocess.Popen(command) as process:
            try:
                until(
                    lambda: not run(console_command(Paths(), port, "SHOW VERSION"), check=False).returncode,
                    "the pooler",
                )
                yield Pooler(f"postgresql://{role}:{PASSWORD}@127.0.0.1:{port}/{name}", port, process, run)
            finally:
                process.kill()
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_prepared_statement_survives_a_new_column_once_the_pooler_has_reconnected(
    postgres: PostgresServer, pooler: Pooler
) -> None:
    database = str(psycopg.conninfo.conninfo_to_dict(pooler.url)["dbname"])
    with postgres.superuser(database) as admin, psycopg.connect(pooler.url, autocommit=True) as client:

        def columns() -> list[str]:
            read = client.execute("SELECT * FROM things", prepare=True)
            return [column.name for column in read.description or ()]

        assert columns() == ["id"]
        admin.execute("ALTER TABLE things ADD COLUMN phone text")
        for _ in range(2):  # and so on for ever
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan must not change result type"):
                columns()

        with client.transaction():  # a transaction under way ends on its own connection
            client.execute("SELECT 1")
            assert reconnect(pooler.run, Paths(), pooler.port, stack="local") is None

        assert columns() == ["id", "phone"]


def test_a_pooler_that_hangs_is_named_with_the_command_to_run(pooler: Pooler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooler_console, "ANSWER_SECONDS", 1.0)
    daemons = psutil.Process(pooler.process.pid).children(recursive=True)
    for daemon in daemons:
        daemon.send_signal(signal.SIGSTOP)
    warning = str(reconnect(pooler.run, Paths(), pooler.port, stack="local"))
    assert warning.startswith(f"pgbouncer at 127.0.0.1:{pooler.port} kept its connections: its console gave no answer")
    assert ". Run: observatory exec -e local pgbouncer -- " in warning
    assert warning.endswith("-d pgbouncer -c RECONNECT")
    assert "cached plan must not change result type" in warning


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_pooler_that_does_not_run_has_nothing_to_replace_and_another_error_is_reported(pooler: Pooler) -> None:
    refused = [*console_command(Paths(), pooler.port, "RECONNECT")]
    refused[refused.index("-U") + 1] = "stranger"

    def as_stranger(
        argv: Sequence[str], *, timeout: float | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        assert list(argv) != refused
        return pooler.run(refused, timeout=timeout, check=check)

    assert "connection to server" in str(reconnect(as_stranger, Paths(), pooler.port, stack="local"))
    daemons = psutil.Process(pooler.process.pid).children(recursive=True)
    pooler.process.kill()
    pooler.process.wait()
    until(lambda: not any(is_alive(each) for each in daemons), "the pooler's end, which is its sandbox's")
    assert reconnect(pooler.run, Paths(), pooler.port, stack="local") is None
    assert reconnect(pooler.run, Paths(), free_port(), stack="local") is None


def test_on_aws_the_command_for_the_machine_is_named() -> None:
    warning = pooler_warning(6432)
    assert warning.startswith("pgbouncer at the database's machine kept its connections")
    assert "Run: sudo -u observatory /usr/lib/postgresql/17/bin/psql -XAt -h /run/observatory -p 6432" in warning
