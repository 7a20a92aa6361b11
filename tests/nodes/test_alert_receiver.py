"""The alert receiver: stores notifications, refuses invalid ones, and pages when the heartbeat stops."""

import contextlib
import errno
import http.client
import json
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from observatory.nodes.programs import alert_receiver
from observatory.nodes.programs.alert_receiver import DEAD_MANS_SWITCH, DeadMansSwitch, Store, server
from observatory.security.client_certificate import ClientCertificate
from tests.support.certificates import monitoring_certificate
from tests.support.clock import own_clock

DAY_S = 86_400
NOTIFICATION = {"status": "firing", "alerts": [{"status": "firing", "labels": {"alertname": "A"}}]}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a running receiver."""
    (tmp_path / "runbooks").mkdir()
    (tmp_path / "runbooks/StorageDown.md").write_text("# StorageDown\n")
    (tmp_path / "secret.md").write_text("secret")
    client = monitoring_certificate(tmp_path)
    running = server(
        0,
        tmp_path,
        tmp_path / "runbooks",
        certificate=client.certificate,
        authority=client.authority,
        silence_seconds=DAY_S,  # its thread outlives the test
    )
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"https://127.0.0.1:{running.server_port}"
    with httpx.Client(base_url=url, timeout=60, verify=client.context()) as trusted:
        yield trusted
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_client_without_a_certificate_sends_and_reads_no_notification(receiver: httpx.Client, tmp_path: Path) -> None:
    receiver.post("/receivers/slack", json=NOTIFICATION)
    anybody = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with httpx.Client(base_url=receiver.base_url, timeout=60, verify=anybody) as stranger:
        assert stranger.post("/receivers/slack", json=NOTIFICATION).status_code == 403
        assert stranger.post("/receivers/watchdog", json=NOTIFICATION).status_code == 403
        assert stranger.get("/alerts").status_code == 403
        assert stranger.get("/runbooks/StorageDown").text == "# StorageDown\n"
        assert stranger.get("/health").status_code == 200
    (other := tmp_path / "other").mkdir()
    with pytest.raises(httpx.TransportError):
        httpx.get(receiver.base_url.join("/alerts"), verify=forged(monitoring_certificate(other), tmp_path))
    assert len(receiver.get("/alerts").json()) == 1


def forged(other: ClientCertificate, tmp_path: Path) -> ssl.SSLContext:
    """Return a context that shows a certificate of another authority."""
    return ClientCertificate(certificate=other.certificate, authority=tmp_path / "ca.crt").context()


def test_a_renewed_certificate_is_used_without_a_restart(receiver: httpx.Client, tmp_path: Path) -> None:
    before = ssl.get_server_certificate(("127.0.0.1", receiver.base_url.port or 0))
    monitoring_certificate(tmp_path)
    after = ssl.get_server_certificate(("127.0.0.1", receiver.base_url.port or 0))
    assert before != after
    assert (tmp_path / "monitoring.pem").read_text().startswith(after.strip())


def test_a_silent_client_delays_no_other(receiver: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", receiver.base_url.port or 0)):
        assert receiver.get("/health").status_code == 200


def test_many_connections_of_strangers_leave_room_for_notifications(
    receiver: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_receiver, "REQUEST_SECONDS", 600)
    address = ("127.0.0.1", receiver.base_url.port or 0)
    with contextlib.ExitStack() as opened:
        strangers = [
            opened.enter_context(socket.create_connection(address)) for _ in range(alert_receiver.STRANGERS + 1)
        ]
        ended, _, _ = select.select(strangers, [], [], 120)  # one, for the last one
        assert [each.recv(1) for each in ended] == [b""]
        for _ in range(2):
            assert receiver.post("/receivers/slack", json=NOTIFICATION).status_code == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://[x/ HTTP/1.1", 404),
        (f"POST /receivers/slack HTTP/1.1\r\nContent-Length: {'9' * 5000}", 403),
        ("POST /receivers/slack HTTP/1.1\r\nContent-Length: \u00b2", 403),
    ],
    ids=["address", "length", "letters"],
)
def test_a_request_of_a_stranger_writes_no_log(
    receiver: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, status: int
) -> None:
    anybody = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", receiver.base_url.port or 0), timeout=60) as opened,
        anybody.wrap_socket(opened, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(f"{line}\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: secured.recv(65536), b""))
    assert f" {status} ".encode() in answer.partition(b"\r\n")[0]
    assert capsys.readouterr().err == ""


def test_a_fault_that_repeats_is_written_to_the_log_once(
    receiver: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(path: str) -> None:
        raise ZeroDivisionError(path)

    monkeypatch.setattr(alert_receiver, "address", faulty)
    for _ in range(3):
        with pytest.raises(httpx.TransportError):
            receiver.get("/health")
    assert capsys.readouterr().err.count("Traceback") == 1


def test_notifications_are_stored_by_receiver(receiver: httpx.Client, tmp_path: Path) -> None:
    for name in ("pagerduty", "slack"):
        assert receiver.post(f"/receivers/{name}", json=NOTIFICATION).status_code == 200
    assert [record["receiver"] for record in receiver.get("/alerts").json()] == ["pagerduty", "slack"]
    (record,) = receiver.get("/alerts?receiver=slack").json()
    assert record["notification"] == NOTIFICATION
    assert Store(tmp_path).records("slack") == [record]


def test_concurrent_notifications_are_all_stored(receiver: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: receiver.post("/receivers/email", json=NOTIFICATION).status_code, range(40)))
    assert set(codes) == {200}
    assert len(receiver.get("/alerts").json()) == 40


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b"1", b"[" * 100_000])
def test_an_invalid_notification_is_refused(receiver: httpx.Client, body: bytes) -> None:
    assert receiver.post("/receivers/slack", content=body).status_code == 400
    assert receiver.get("/alerts").json() == []


@pytest.mark.parametrize("length", ["0", "99999999", "-1", "many"])
def test_a_body_of_no_usable_length_is_refused(receiver: httpx.Client, tmp_path: Path, length: str) -> None:
    context = ClientCertificate(certificate=tmp_path / "monitoring.pem", authority=tmp_path / "ca.crt").context()
    connection = http.client.HTTPSConnection("127.0.0.1", receiver.base_url.port, timeout=60, context=context)
    with contextlib.closing(connection):
        connection.request("POST", "/receivers/slack", headers={"Content-Length": length})
        assert connection.getresponse().status == 413


@pytest.mark.parametrize("path", ["/receivers/", "/receivers/../x", "/receivers/A", "/other"])
def test_an_unknown_receiver_is_refused(receiver: httpx.Client, path: str) -> None:
    assert receiver.post(path, json=NOTIFICATION).status_code == 404


def test_runbooks_are_served_and_nothing_beside_them(receiver: httpx.Client) -> None:
    for path in ("/runbooks/StorageDown", "/runbooks/StorageDown.md"):
        assert receiver.get(path).text == "# StorageDown\n"
    for path in ("/runbooks/Unknown", "/runbooks/..%2Fsecret", "/runbooks/%2e%2e/secret", "/"):
        assert receiver.get(path).status_code == 404


def test_the_store_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path, file_bytes=2_000)
    for number in range(200):
        store.add("slack", {"number": number})
    numbers = [record["notification"]["number"] for record in store.records()]
    assert numbers == list(range(numbers[0], 200))
    assert len(numbers) > 10
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5_000


def test_an_incomplete_line_is_skipped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("slack", {"number": 1})
    with (tmp_path / "received.jsonl").open("a") as file:
        file.write('{"receiver": "sl')
    again = Store(tmp_path)
    again.add("slack", {"number": 2})
    assert [record["notification"]["number"] for record in again.records()] == [1, 2]


def test_a_line_that_a_full_disk_cut_short_spoils_no_later_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("slack", {"number": 1})
    with (tmp_path / "received.jsonl").open("a") as file:
        file.write('{"receiver": "sl')
    for number in (2, 3):
        store.add("slack", {"number": number})
    assert [record["notification"]["number"] for record in store.records()] == [1, 2, 3]


def test_a_page_that_was_not_stored_is_recorded_by_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, full = own_clock(monkeypatch, alert_receiver), [True]
    clock[0] = 0.0
    store = Store(tmp_path)
    switch = DeadMansSwitch(store, seconds=300)
    switch.heartbeat()
    add = store.add

    def add_if_there_is_room(receiver: str, notification: dict[str, object]) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(receiver, notification)

    monkeypatch.setattr(store, "add", add_if_there_is_room)
    clock[0] = 301.0
    with pytest.raises(OSError, match="No space left"):
        switch.check()
    full[0] = False
    switch.check()
    switch.check()
    full[0] = True
    with pytest.raises(OSError, match="No space left"):
        switch.heartbeat()
    full[0] = False
    switch.heartbeat()
    assert [record["notification"]["status"] for record in store.records(DEAD_MANS_SWITCH)] == ["firing", "resolved"]


def test_silence_pages_once_and_a_heartbeat_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = own_clock(monkeypatch, alert_receiver)
    clock[0] = 0.0
    store = Store(tmp_path)
    switch = DeadMansSwitch(store, seconds=300)
    for clock[0] in (100.0, 299.0):
        switch.check()
    assert not store.records()
    for clock[0] in (301.0, 400.0):
        switch.check()
    switch.heartbeat()
    switch.heartbeat()
    assert [record["notification"]["status"] for record in store.records(DEAD_MANS_SWITCH)] == ["firing", "resolved"]


def test_the_watchdogs_notification_is_the_heartbeat(receiver: httpx.Client, tmp_path: Path) -> None:
    heard = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeadMansSwitch, "heartbeat", lambda _: heard.set())
        receiver.post("/receivers/slack", json=NOTIFICATION)
        assert not heard.is_set()
        receiver.post("/receivers/watchdog", json=NOTIFICATION)
    assert heard.is_set()
    assert json.loads((tmp_path / "received.jsonl").read_text().splitlines()[-1])["receiver"] == "watchdog"
