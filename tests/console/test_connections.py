"""Connections of strangers take no place that a browser needs, and end by themselves."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from observatory.console import connections
from tests.console.conftest import Served
from tests.support.waiting import until

MANY = 3 * connections.CONNECTIONS


def connected(console: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", console.port), timeout=60)


@contextlib.contextmanager
def strangers(console: Served, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open many connections that send something and then read nothing."""
    with contextlib.ExitStack() as opened:
        found = [opened.enter_context(connected(console)) for _ in range(MANY)]
        for each in found:
            with contextlib.suppress(OSError):  # the console has ended it
                each.setblocking(False)
                each.send(sent)
        yield found


def page(console: Served) -> bytes:
    return f"GET /static/console.css HTTP/1.1\r\nHost: 127.0.0.1:{console.port}\r\n\r\n".encode()


def status(console: Served, address: str, headers: dict[str, str] | None) -> int:
    """Return the status that a browser gets, which asks again while many answers to strangers are under way."""
    with console.client() as browser:
        found: list[int] = []

        def answered() -> bool:
            found.append(browser.get(address, headers=headers).status_code)
            return found[-1] != HTTPStatus.SERVICE_UNAVAILABLE

        until(answered, "a place for a browser")
        return found[-1]


@pytest.mark.parametrize("kind", ["idle", "part of a request", "answers that are not read"])
def test_connections_of_strangers_take_no_place_that_a_browser_needs(console: Served, kind: str) -> None:
    sent = {"idle": b"", "part of a request": b"GET / HTTP/1.1\r\nHost: x\r\n"}.get(kind, page(console) * 500)
    with console.session() as (client, path):
        cookie = {"cookie": f"observatory_console={next(iter(client.cookies.jar)).value}"}
    with strangers(console, sent):
        for address, headers, expected in ((path, cookie, 200), ("/", None, 401), (path, cookie, 200)):
            assert status(console, address, headers) == expected


def test_a_connection_without_a_complete_request_is_closed(console: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n", page(console)):
        with connected(console) as connection, contextlib.suppress(ConnectionError):  # closed before it was sent
            connection.sendall(sent)
            while connection.recv(65536):  # until it is closed
                pass


def test_parts_of_a_request_do_not_extend_its_time(console: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    with connected(console) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")

        def is_closed() -> bool:
            with contextlib.suppress(BlockingIOError):
                connection.setblocking(False)
                connection.send(b"x")
                return connection.recv(1) == b""
            return False

        with contextlib.suppress(ConnectionError):
            until(is_closed, "the end of the connection", timeout_s=60)


def test_a_connection_that_reads_no_answer_is_ended(console: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    with connected(console) as connection:

        def send() -> None:
            while True:
                connection.sendall(page(console) * 500)

        with pytest.raises(ConnectionError):
            send()
