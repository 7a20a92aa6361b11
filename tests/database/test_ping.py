"""Whether a server accepted writes all the time: a real server is stopped, crashes and is a standby."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from observatory.database import ping
from observatory.database.ping import is_writable, watched
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.waiting import until


def stop(server: PostgresServer) -> None:
    server.stop()


def restart(server: PostgresServer) -> None:
    server.restart()


def crash(server: PostgresServer) -> None:
    """Kill a session's process: the server ends all others, and recovers within a second.

    It accepts writes until it has noticed the end of the process, whose id nothing has from then on.
    """
    with closing(server.superuser()) as session:
        pid = session.info.backend_pid
        os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid), "the server to have noticed")
    until(lambda: is_writable(server.conninfo()), "the server to have recovered")


@pytest.mark.parametrize("disturb", [stop, restart, crash])
def test_a_server_that_was_away_did_not_accept_writes_all_the_time(
    rootfs: Path, disturb: Callable[[PostgresServer], None]
) -> None:
    with postgres_server(rootfs) as server:
        with watched(server.conninfo()) as found:
            assert found.accepted_at_first
            assert found.accepted_writes()
            assert found.accepted_writes()
            disturb(server)
            assert not found.accepted_writes()
        if server.process is None:
            with watched(server.conninfo()) as found:
                assert not found.accepted_writes()
                server.start()
                assert not found.accepted_writes()
                assert not found.accepted_at_first


def test_a_server_that_is_frozen_ends_no_wait_late(rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel accepts the connection, and its process answers nothing."""
    monkeypatch.setattr(ping, "ANSWER_S", 0.1)
    with postgres_server(rootfs) as server, contextlib.closing(server.superuser()) as session:
        backend = session.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            monkeypatch.setattr(ping, "connect", lambda *_arguments, **_options: contextlib.nullcontext(session))
            assert not is_writable(server.conninfo())
        finally:
            os.kill(backend, signal.SIGCONT)


def test_a_standby_did_not_accept_writes_before_it_was_promoted(rootfs: Path) -> None:
    with postgres_server(rootfs) as server:
        server.stop()
        (server.directory / "data/standby.signal").touch()
        server.start()
        with watched(server.conninfo()) as found:
            assert not found.accepted_writes()
            with server.superuser() as connection:
                assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
            assert is_writable(server.conninfo())
            assert not found.accepted_writes()
