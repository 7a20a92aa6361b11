"""Only the browser that opened a link reads the console, and no page of another origin has it read."""

from __future__ import annotations

import os
import re
import socket
import stat
import time

import pytest

from observatory.console import access
from observatory.console.access import SESSION_SECONDS, SESSIONS, Sessions
from observatory.operations.console import LINK_SECONDS
from tests.console.conftest import Served
from tests.support.clock import own_clock

PAGES = ("", "deployments", "alerts", "dashboards/overview", "data/overview", "backups", "migrations", "jobs", "audit")
POLICY = "script-src 'self'"


def raw(console: Served, *headers: str, method: str = "GET", path: str = "/") -> int:
    """Send a request with these headers as they are, and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", console.port), timeout=60) as connection:
        connection.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *headers, "Connection: close", "", ""]).encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_a_link_opens_the_console_once(console: Served) -> None:
    link = console.link()
    with console.client() as client:
        opened = client.get(link)
        assert opened.status_code == 200
        assert client.get(link).status_code == 403
        cookie = opened.headers["set-cookie"]
        path = cookie.partition("Path=")[2].partition(";")[0]
        assert f'url={path}"' in opened.text  # not a redirect, which a strict cookie would not follow from elsewhere
        assert client.get(path).status_code == 200
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert len(path) > 20
    assert "Domain" not in cookie


def test_a_wrong_or_expired_token_opens_nothing(console: Served) -> None:
    with console.client() as client:
        for token in ("x", "..%2F..", "0" * 43):
            answer = client.get(f"/open/{token}")
            assert answer.status_code in {401, 403}
            assert "set-cookie" not in answer.headers
        for seconds in (-LINK_SECONDS - 1, LINK_SECONDS + 60):  # also after the clock was set back
            link = console.link()
            [file] = console.links.directory.iterdir()
            changed = time.time() + seconds
            os.utime(file, (changed, changed))
            assert client.get(link).status_code == 403


def test_a_preview_of_a_link_does_not_use_it_up(console: Served) -> None:
    link = console.link()
    with console.client() as client:
        assert client.head(link).status_code == 403
        assert client.get(link).status_code == 200


def test_tokens_are_files_that_only_this_user_can_read_and_have_no_token_in_their_name(console: Served) -> None:
    token = console.links.create()
    [file] = console.links.directory.iterdir()
    assert token not in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(console.links.directory.stat().st_mode) == 0o700
    console.links.remove()
    assert not console.links.redeem(token)


@pytest.mark.parametrize("page", PAGES)
def test_without_the_cookie_there_is_no_page(console: Served, page: str) -> None:
    with console.session() as (_, path), console.client() as stranger:
        for headers in ({}, {"cookie": f"observatory_console={'x' * 43}"}):
            answer = stranger.get(f"{path}{page}", headers=headers)
            assert answer.status_code == 401
            assert "observatory console" in answer.text


def test_a_cookie_is_for_its_own_session_only(console: Served) -> None:
    with console.session() as (client, _), console.session() as (_, other):
        secret = next(iter(client.cookies.jar)).value or ""
        with console.client() as stranger:
            assert stranger.get(other, headers={"cookie": f"observatory_console={secret}"}).status_code == 401


def test_a_cookie_of_another_port_does_not_lock_the_session(console: Served) -> None:
    with console.session() as (client, path), console.client() as browser:
        own, other = (f"observatory_console={each}" for each in (next(iter(client.cookies.jar)).value, "x"))
        for cookies in (f"{own}; {other}", f"{other}; {own}", f"observatory_console; {other}; a=b;{own}"):
            assert browser.get(path, headers={"cookie": cookies}).status_code == 200
        assert browser.get(path, headers={"cookie": f"{other}; observatory_console="}).status_code == 401


def test_a_name_of_another_site_for_this_address_is_refused(console: Served) -> None:
    own = f"Host: 127.0.0.1:{console.port}"
    assert raw(console, own) == 401
    assert raw(console, f"Host: localhost:{console.port}") == 401
    for host in ("attacker.example", f"attacker.example:{console.port}", "127.0.0.1", f"127.0.0.1:{console.port + 1}"):
        assert raw(console, f"Host: {host}") == 403
    assert raw(console, own, "Host: attacker.example") in {400, 403}
    assert raw(console) in {400, 403}


def test_a_request_of_another_origin_is_refused_with_a_valid_cookie(console: Served) -> None:
    with console.session() as (client, path):
        assert client.get(path, headers={"origin": console.url}).status_code == 200
        for origin in ("https://attacker.example", "null", "http://127.0.0.1:1", f"https://127.0.0.1:{console.port}"):
            assert client.get(path, headers={"origin": origin}).status_code == 403


def test_requests_of_strangers_write_no_log(console: Served, caplog: pytest.LogCaptureFixture) -> None:
    for request in (b"\0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", console.port), timeout=60) as connection:
            connection.sendall(request)
            assert connection.recv(9) == b"HTTP/1.1 "
    assert caplog.text == ""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_console_accepts_no_request_that_could_change_anything(console: Served, method: str) -> None:
    with console.session() as (client, path):
        assert client.request(method, path).status_code == 405


def test_every_answer_forbids_other_scripts_and_frames(console: Served) -> None:
    with console.session() as (client, path):
        answers = [
            client.get(each) for each in (path, f"{path}none", "/", "/open/x", "/static/console.css", f"{path}static/x")
        ]
        answers.append(client.get(path, headers={"origin": "null"}))
        answers.append(client.post(path))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert POLICY in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert {answer.headers["cache-control"] for answer in answers[:2]} == {"no-store"}


def test_files_of_the_page_are_served_and_no_others(console: Served) -> None:
    with console.session() as (client, path), console.client() as stranger:
        for page in ("", "audit", "deployments/none", "none/none/none"):
            answer = client.get(f"{path}{page}")
            files = {str(answer.url.join(each)) for each in re.findall(r'"([^"]*static/[^"]+)"', answer.text)}
            assert files >= {f"{console.url}{path}static/{name}" for name in ("console.css", "console.js")}
            assert {client.get(each).status_code for each in files} == {200}
        assert "function keepFresh" in client.get(f"{path}static/console.js").text
        assert b"plotly.js" in client.get(f"{path}static/plotly.min.js").content[:200]
        for name in ("console.py", "..%2Fserver.py", "%2e%2e/server.py", "widgetbundle.js"):
            assert client.get(f"{path}static/{name}").status_code == 404
        assert stranger.get("/static/console.css").headers["content-type"].startswith("text/css")
        for address in (f"{path}static/console.js", "/static/console.js", "/static/..%2Fserver.py"):
            assert stranger.get(address).status_code == 401


def test_sessions_end_and_their_number_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sessions = own_clock(monkeypatch, access), Sessions()
    first = sessions.open()
    assert sessions.find(first.path, first.secret) == first
    assert sessions.find(first.path, "wrong") is None
    clock[0] += SESSION_SECONDS + 1
    assert sessions.find(first.path, first.secret) is None
    opened = [sessions.open() for _ in range(SESSIONS + 1)]
    assert sessions.find(opened[0].path, opened[0].secret) is None
    assert sessions.find(opened[-1].path, opened[-1].secret) == opened[-1]
