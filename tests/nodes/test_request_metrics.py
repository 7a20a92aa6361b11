"""Metrics of the balancer's requests: on a real HAProxy, with instances that misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest

from observatory.nodes.programs.request_metrics import MOST_STATUSES, OPERATIONS, Counts, outcome
from observatory.waiting import wait_until
from service.storage_service.operations import operations
from tests.support.balancer import Balancer, running_balancer
from tests.support.waiting import until

LINE = (
    "127.0.0.1:1 [28/Nov/2026:17:33:06.184] service~ {where} 0/0/0/{time}/9 {status} 235 - - {state} 1/1/0/0/0 0/0"
    ' {sent} {fleet} "{method}" "{path}" HTTP/1.1\n'
)
USUAL = {"where": "fleet_blue/blue-1", "time": 7, "status": 200, "state": "----", "sent": 98, "fleet": "blue"}
READ = "/v1/traces/{id} GET"


@pytest.fixture(scope="module")
def balancer(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    changed = {
        "timeout server 60s": "timeout server 20s",  # an instance that answers does so before, on a busy machine too
        "wait-for-body time 10s": "wait-for-body time 25s",  # a slow client ends before
        "fall 2": "fall 100",  # no instance goes down here, also where the machine is too busy for the checks
    }
    with running_balancer(
        rootfs, tmp_path_factory.mktemp("balancer"), {"blue": 1, "green": 1}, changed=changed
    ) as running:
        yield running


def counted(balancer: Balancer, before: Counter[str], *expected: str) -> None:
    """Wait until exactly these requests have been counted since `before`."""
    more: Counter[str] = Counter()

    def arrived() -> bool:
        nonlocal more
        more = balancer.requests() - before
        return more.total() >= len(expected)

    assert wait_until(arrived, 60), (more, balancer.metrics())
    assert more == Counter(expected)


def line(**changed: object) -> str:
    return LINE.format(**{**USUAL, "method": "GET", "path": "/v1/traces/1", **changed})


def test_requests_are_counted_by_operation_and_status(balancer: Balancer) -> None:
    before = balancer.settled()
    for path in ("/v1/traces?cursor=private", "/v1/traces/1", "/v1/traces/404", "/v1/traces/500", "/v1/private"):
        httpx.get(f"{balancer.url}{path}")
    httpx.get(f"{balancer.url}/v1/traces/{'x' * 3000}")  # HAProxy cuts off the line
    httpx.post(f"{balancer.url}/v1/logs", content=b"{}")
    httpx.request("PRIVATE", f"{balancer.url}/v1/costs")
    httpx.get(f"{balancer.url}/private")
    counted(
        balancer,
        before,
        "blue blue-1 /v1/traces GET 200 answered",
        *[f"blue blue-1 {READ} 200 answered"] * 2,
        f"blue blue-1 {READ} 404 answered",
        f"blue blue-1 {READ} 500 answered",
        "blue blue-1 other other 200 answered",
        "blue blue-1 /v1/logs POST 200 answered",
        "blue blue-1 /v1/costs other 501 answered",
        "none none other other 404 refused",
    )
    assert "private" not in balancer.metrics().lower()


def test_requests_that_nobody_answered_are_counted(balancer: Balancer) -> None:
    before = balancer.settled()
    for word, status in (("hangs", 504), ("ends", 502)):
        assert httpx.get(f"{balancer.url}/v1/traces/{word}").status_code == status
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{balancer.url}/v1/traces/cut")
    counted(
        balancer,
        before,
        f"blue blue-1 {READ} 504 timeout",
        f"blue blue-1 {READ} 502 server_abort",
        f"blue blue-1 {READ} 200 server_abort",
    )


def test_a_client_that_gives_up_is_counted_at_once(balancer: Balancer) -> None:
    before = balancer.settled()
    with socket.create_connection(("127.0.0.1", balancer.ports.service), timeout=60) as client:
        client.sendall(b"GET /v1/traces/hangs?given-up HTTP/1.1\r\nHost: a\r\n\r\n")
        paths = balancer.fleets["blue"][0].paths
        until(lambda: "/v1/traces/hangs?given-up" in paths, "the instance to have the request")
    counted(balancer, before, f"blue blue-1 {READ} none client_abort")


def test_the_time_of_a_response_excludes_that_of_the_client(balancer: Balancer) -> None:
    before = balancer.settled()
    fast, slow = (balancer.bucket("/v1/logs", "POST", limit) for limit in ("10.0", "+Inf"))
    with contextlib.ExitStack() as opened:
        clients = {}
        for size in (1_000, 12_000, 40_000):  # the last is larger than the buffer, so its time is unknown
            address = ("127.0.0.1", balancer.ports.service)
            clients[size] = opened.enter_context(socket.create_connection(address, timeout=60))
            clients[size].sendall(b"POST /v1/logs HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(4):
            time.sleep(2.6)  # together longer than the 10 s within which an instance answers, however busy it is
            for size, client in clients.items():
                client.sendall(b"x" * (size // 4))
        assert all(client.recv(4096).startswith(b"HTTP/1.1 200") for client in clients.values())
    counted(balancer, before, *["blue blue-1 /v1/logs POST 200 answered"] * 3)
    assert balancer.bucket("/v1/logs", "POST", "+Inf") == slow + 2
    assert balancer.bucket("/v1/logs", "POST", "10.0") == fast + 2


def test_a_body_that_does_not_arrive_is_refused(balancer: Balancer) -> None:
    before = balancer.settled()
    with socket.create_connection(("127.0.0.1", balancer.ports.service), timeout=60) as client:
        client.sendall(b"POST /v1/logs HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
        assert client.recv(4096).startswith(b"HTTP/1.1 408")
    counted(balancer, before, "none none /v1/logs POST 408 refused")


def test_the_preview_is_not_counted(balancer: Balancer) -> None:
    before = balancer.settled()
    url = f"http://127.0.0.1:{balancer.ports.preview}/v1/traces/1"
    assert httpx.get(url, headers={"X-Observatory-Fleet": "green"}).status_code == 200
    httpx.get(f"{balancer.url}/v1/costs")
    counted(balancer, before, "blue blue-1 /v1/costs GET 200 answered")


def test_the_log_has_errors_only_and_no_query(balancer: Balancer) -> None:
    before = balancer.settled()
    httpx.get(f"{balancer.url}/v1/traces/fine")
    httpx.get(f"{balancer.url}/v1/traces/503?key=private")
    counted(balancer, before, f"blue blue-1 {READ} 200 answered", f"blue blue-1 {READ} 503 answered")

    def logged(*texts: str) -> bool:
        lines = balancer.sandbox.supervisor.log_tail("haproxy", lines=100)
        return any(text in each for each in lines for text in texts)

    until(lambda: logged("/v1/traces/503"), "the supervisor to write the line that HAProxy has printed")
    assert not logged("/v1/traces/fine", "private")


def test_requests_do_not_wait_for_a_counter_that_stands_still(balancer: Balancer) -> None:
    pid = balancer.sandbox.supervisor.status("request-metrics").pid
    assert pid
    before = balancer.settled()
    os.kill(pid, signal.SIGSTOP)
    try:
        with httpx.Client(base_url=balancer.url) as client:
            assert {client.get("/v1/traces/1").status_code for _ in range(100)} == {200}
    finally:
        os.kill(pid, signal.SIGCONT)
    counted(balancer, before, *[f"blue blue-1 {READ} 200 answered"] * 100)


def test_a_counter_that_died_counts_again(balancer: Balancer) -> None:
    pid = balancer.sandbox.supervisor.status("request-metrics").pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: balancer.sandbox.supervisor.status("request-metrics").pid not in {pid, None}, 60)

    def counts() -> bool:
        httpx.get(f"{balancer.url}/v1/traces/1").raise_for_status()
        try:
            return balancer.requests().total() > 0
        except httpx.HTTPError:
            return False

    assert wait_until(counts, 60)


def test_a_reload_continues_the_counts(balancer: Balancer) -> None:
    before = balancer.settled()
    balancer.reload()
    with httpx.Client(base_url=balancer.url) as client:
        assert {client.get("/v1/traces/1").status_code for _ in range(20)} == {200}
    counted(balancer, before, *[f"blue blue-1 {READ} 200 answered"] * 20)


def test_the_operations_are_those_of_the_service() -> None:
    listed = {(each.method, each.path.replace("{trace_id}", "{id}")) for each in operations(Mock())}
    public = {operation for operation in listed if operation[1] not in {"/health", "/metrics"}}
    assert public | {("GET", "/openapi.json")} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("state", "reached", "expected"),
    [
        ("--", True, "answered"),
        ("CD", True, "client_abort"),
        ("CR", False, "client_abort"),
        ("CC", False, "client_abort"),
        ("cD", True, "client_abort"),
        ("cR", False, "refused"),
        ("LR", False, "refused"),
        ("PR", False, "refused"),
        ("SC", False, "refused"),
        ("SC", True, "refused"),
        ("sC", True, "refused"),
        ("sQ", False, "refused"),
        ("RC", True, "refused"),
        ("sH", True, "timeout"),
        ("sD", True, "timeout"),
        ("SH", True, "server_abort"),
        ("PH", True, "server_abort"),
        ("DH", True, "server_abort"),
        ("KD", True, "server_abort"),
    ],
)
def test_outcomes(state: str, reached: bool, expected: str) -> None:
    assert outcome(state[0], state[1], reached=reached) == expected


def test_a_request_that_fell_back_is_a_failure_of_the_chosen_fleet() -> None:
    counts = Counts()
    counts.add(line(fleet="green"))
    labels = 'route="/v1/traces/{id}",method="GET",status="200"'
    assert f'balancer_requests_total{{fleet="blue",server="blue-1",{labels},outcome="answered"}} 1' in counts.text()
    assert f'balancer_requests_total{{fleet="green",server="none",{labels},outcome="fallback"}} 1' in counts.text()


def test_the_number_of_series_is_limited_whatever_clients_and_versions_send() -> None:
    counts = Counts()
    for number in range(1000):
        counts.add(line(method=f"M{number}", path=f"/v1/{number}", status=100 + number % 500))
    counts.add(line(path="/v1/traces/" + "x" * 900)[:1000])  # HAProxy cuts a long line off
    counts.add("127.0.0.1:1 [28/Nov/2026:17:33:06.184] service~/1: SSL handshake failure\n")
    text = counts.text()
    assert text.count("\nbalancer_requests_total{") == MOST_STATUSES + 2
    assert 'status="other"' in text
    assert 'balancer_request_lines_total{kind="counted"} 1001' in text
    assert 'balancer_request_lines_total{kind="unknown"} 1' in text
