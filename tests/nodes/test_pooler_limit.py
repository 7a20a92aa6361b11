"""Pools fit into the server: idle sessions of one login make room for another's, and none exceeds its login's limit.

The locks of a client that was killed end, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from observatory.documents.login_limits import READONLY_LIMITS
from observatory.nodes import Paths
from observatory.nodes.pgbouncer import pgbouncer, pool_sizes
from observatory.nodes.postgres import node_parameters
from observatory.settings import LocalSettings
from observatory.settings.base import Database
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.sandboxes import sandboxed
from tests.support.waiting import until

PASSWORD = "a-password"
RESERVED = 3  # PostgreSQL's superuser_reserved_connections
LOGINS, READER = ("pooled_app_a", "pooled_app_b"), "pooled_readonly_a"
# Without its query_wait_timeout: a client waits for as long as a busy machine takes.
SIZES = ("default_pool_size", "min_pool_size", "max_db_connections", "server_login_retry")
SETTINGS = LocalSettings(database=Database(max_connections=22, pool_size=12))


@pytest.fixture
def pooler(postgres: PostgresServer, tmp_path: Path) -> Iterator[str]:
    """Return the address of a pooler with a stack's sizes, before a database that takes what its server would."""
    port, (config,) = free_port(), pgbouncer(SETTINGS, Paths()).files.values()
    sizes = [line for line in config.splitlines() if re.match(rf"({'|'.join(SIZES)}) =", line)]
    users = [f"pooled_{line}" for line in config.splitlines() if re.match(r"(app|readonly)_[ab] =", line)]
    logins = (*LOGINS, READER)
    (tmp_path / "users").write_text("".join(f'"{login}" "{PASSWORD}"\n' for login in logins), encoding="utf-8")
    with postgres.fresh_database() as name, postgres.superuser(name) as admin:
        for login in logins:
            admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{PASSWORD}'".encode())
        admin.execute(f"ALTER ROLE {READER} CONNECTION LIMIT {READONLY_LIMITS.connections}".encode())
        limit = SETTINGS.database.max_connections - RESERVED
        admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT {limit}".encode())
        ini = (
            f"[databases]\n{name} = host={postgres.host} port={postgres.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nauth_type = scram-sha-256\nauth_file = /srv/users\npool_mode = transaction\n"
        )
        (tmp_path / "pgbouncer.ini").write_text("\n".join([ini, *sizes, "[users]", *users, ""]), encoding="utf-8")
        command = sandboxed(postgres.rootfs, tmp_path, ["/usr/sbin/pgbouncer", "/srv/pgbouncer.ini"])
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                yield f"host=127.0.0.1 port={port} dbname={name} password={PASSWORD}"
            finally:
                process.kill()
        for login in logins:
            admin.execute(f"DROP ROLE {login}".encode())


def all_busy(address: str, login: str) -> int:
    """Open as many transactions at once as a pool has sessions; return their number."""
    with contextlib.ExitStack() as clients:
        sessions = [
            clients.enter_context(psycopg.connect(address, user=login)) for _ in range(SETTINGS.database.pool_size)
        ]
        return len({session.execute("SELECT pg_backend_pid()").fetchone() for session in sessions})


def one_statement(address: str) -> None:
    with psycopg.connect(address, user=READER) as session:
        session.execute("SELECT pg_sleep(1)")


def connects(address: str) -> bool:
    try:
        psycopg.connect(address, user=LOGINS[0]).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_second_login_gets_its_whole_pool_while_the_first_ones_sessions_are_idle(pooler: str) -> None:
    until(lambda: connects(pooler), "the pooler")
    assert [all_busy(pooler, login) for login in LOGINS] == [SETTINGS.database.pool_size] * len(LOGINS)


def test_clients_beyond_a_readers_pool_wait_without_attempts_that_postgresql_refuses(
    pooler: str, tmp_path: Path
) -> None:
    until(lambda: connects(pooler), "the pooler")
    assert READONLY_LIMITS.connections < SETTINGS.database.pool_size
    clients = 2 * pool_sizes(SETTINGS)["readonly_a"]
    with ThreadPoolExecutor(clients) as executor:
        for done in [executor.submit(one_statement, pooler) for _ in range(clients)]:
            done.result()
    assert "too many connections" not in (tmp_path / "log").read_text(encoding="utf-8")


def test_the_statement_of_a_killed_client_ends_with_its_locks(pooler: str, postgres: PostgresServer) -> None:
    name, interval = str(conninfo_to_dict(pooler)["dbname"]), "client_connection_check_interval"
    with postgres.superuser(name) as admin:
        wanted = node_parameters(SETTINGS, Paths())[interval]
        admin.execute(f"ALTER DATABASE {name} SET {interval} = '{wanted}'".encode())

        def is_held() -> bool:
            return (
                admin.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7").fetchone() is not None
            )

        until(lambda: connects(pooler), "the pooler")
        with contextlib.closing(psycopg.connect(pooler, user=LOGINS[0])) as client:
            client.pgconn.send_query(b"BEGIN; SELECT pg_advisory_xact_lock(7); SELECT pg_sleep(3600)")
            until(is_held, "the lock to be taken")
            with socket.socket(fileno=os.dup(client.fileno())) as killed:
                killed.shutdown(socket.SHUT_RDWR)
            until(lambda: not is_held(), "the lock to be free")
