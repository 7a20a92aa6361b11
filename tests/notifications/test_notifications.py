"""Notices reach real receivers in each one's format, and a receiver that is down delays nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from observatory.delivery.deployment import deploy
from observatory.delivery.errors import RolledBackError
from observatory.documents.journal import Entry, FileJournal, entries
from observatory.notifications import Channel, Email, Notifier, PagerDuty, Secret, Slack, Webhook, channels, notifier
from observatory.notifications.configured import alert_channels
from observatory.notifications.messages import Notice
from observatory.notifications.notifier import ATTEMPTS
from observatory.platforms import platform_of
from observatory.progress import silent
from observatory.security.certificates import issue, make_authority
from observatory.settings import LocalSettings, Notifications
from observatory.workspace import Workspace
from tests.delivery.environment import BAD, Simulation, simulation
from tests.delivery.faults import blue_green
from tests.notifications.receiver import Receiver, receiver
from tests.support.ports import free_port
from tests.support.waiting import until

LONG_S = 120.0  # to deliver, on a machine that is very busy
ALL_KINDS = ["start", "step", "success"]


@contextmanager
def notified(file: Path, *channels: Channel, wait_s: float = LONG_S) -> Iterator[FileJournal]:
    """Yield a journal whose events are sent to channels, and wait for them at the end."""
    journal = FileJournal(file, silent)
    sender = Notifier("local", channels, journal.record)
    journal.listeners.append(sender.take)
    yield journal
    sender.close(wait_s)


def webhook(at: Receiver) -> Webhook:
    return Webhook(Secret(plain=at.url))


def deliver(journal: FileJournal, stack: Simulation) -> None:
    """Deploy a version by blue-green on a simulated stack."""
    stack.record = journal.record  # type: ignore[method-assign]
    deploy(stack.environment(), blue_green())


def not_delivered(file: Path) -> list[tuple[str, str, str]]:
    """Return (channel, kind, reason) of the undelivered notices in the journal."""
    lost = [entry.details for entry in entries(file) if entry.event == "not-notified"]
    return [(each["channel"], each["kind"], each["reason"]) for each in lost]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that answers is not asked twice and is not given up, however busy the machine is."""
    monkeypatch.setattr(channels, "ATTEMPT_SECONDS", 60.0)
    monkeypatch.setattr(notifier, "WHOLE_ATTEMPT_SECONDS", LONG_S)
    monkeypatch.setattr(notifier, "RETRY_SECONDS", LONG_S)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_deployment_sends_notices_from_its_start_to_its_success(file: Path) -> None:
    with receiver() as hook:
        with notified(file, webhook(hook)) as journal:
            deliver(journal, simulation())
        assert [notice["kind"] for notice in hook.got] == ALL_KINDS
        assert {notice["stack"] for notice in hook.got} == {"local"}
        assert len({notice["deployment"] for notice in hook.got}) == 1
        assert hook.got[1]["details"]["weights"] == {"blue": 0, "green": 100}
        assert "v0.2.0" in hook.got[0]["title"]
    assert not_delivered(file) == []


def test_slack_gets_a_text_without_markup(file: Path) -> None:
    with receiver() as slack:
        with notified(file, Slack(Secret(plain=slack.url))) as journal:
            journal.record("escalate", deployment="d1", version="v0.2.0", reason="<!channel> & co")
        (message,) = slack.got
    assert "local: deployment of v0.2.0 requires an operator" in message["text"]
    assert "&lt;!channel&gt; &amp; co" in message["text"]


def test_pagerduty_gets_an_incident_of_the_deployment_and_its_resolution(file: Path) -> None:
    with receiver() as pagerduty:
        with (
            notified(file, PagerDuty(Secret(plain="the-key"), pagerduty.url)) as journal,
            pytest.raises(RolledBackError),
        ):
            deliver(journal, simulation(intervals=iter([BAD] * 3)))
        trigger, resolve = pagerduty.got
    assert (trigger["event_action"], resolve["event_action"]) == ("trigger", "resolve")
    assert trigger["dedup_key"] == resolve["dedup_key"]
    assert trigger["routing_key"] == "the-key"
    assert trigger["payload"]["severity"] == "warning"
    assert "50.00%" in trigger["payload"]["custom_details"]["reason"]


def test_an_escalation_is_a_critical_incident(file: Path) -> None:
    with receiver() as pagerduty:
        with notified(file, PagerDuty(Secret(plain="the-key"), pagerduty.url)) as journal:
            journal.record("escalate", deployment="d1", version="v0.2.0", reason="blue is not healthy")
        (event,) = pagerduty.got
    assert (event["event_action"], event["payload"]["severity"]) == ("trigger", "critical")
    assert event["dedup_key"] == "local/d1"


def test_a_failed_notice_is_retried_in_order(file: Path) -> None:
    with receiver((500, {}), (503, {})) as hook:
        with notified(file, webhook(hook)) as journal:
            deliver(journal, simulation())
        assert [notice["kind"] for notice in hook.got] == ["start", "start", *ALL_KINDS]
    assert not_delivered(file) == []


def test_the_retry_after_of_a_receiver_is_respected(file: Path) -> None:
    with receiver((429, {"Retry-After": "3"})) as hook:
        with notified(file, webhook(hook)) as journal:
            journal.record("promoted", deployment="d1")
        first, second = hook.times
    assert second - first >= 3


@pytest.mark.parametrize("status", [400, 403, 404, 302])
def test_a_refused_notice_is_not_retried_and_is_recorded(file: Path, status: int) -> None:
    with receiver((status, {"Location": "http://127.0.0.1:1/"})) as hook:
        with notified(file, webhook(hook)) as journal:
            journal.record("promoted", deployment="d1")
        assert len(hook.got) == 1
        assert not_delivered(file) == [("webhook", "success", f"response {status}: ok")]
        assert hook.url not in file.read_text()  # it may be the secret


def test_a_receiver_that_is_down_fails_no_deployment_and_is_recorded(file: Path) -> None:
    port = free_port()
    stack = simulation()
    with notified(file, Webhook(Secret(plain=f"http://127.0.0.1:{port}/hook")), wait_s=0) as journal:
        deliver(journal, stack)
    assert stack.live == {"blue": 0, "green": 100}
    assert [(channel, kind) for channel, kind, _ in not_delivered(file)] == [("webhook", kind) for kind in ALL_KINDS]


def test_the_retries_of_a_failing_receiver_end(file: Path) -> None:
    with receiver(*[(500, {})] * ATTEMPTS) as hook:
        with notified(file, webhook(hook)) as journal:
            journal.record("promoted", deployment="d1")
        assert len(hook.got) == ATTEMPTS
    assert not_delivered(file) == [("webhook", "success", "response 500: ok")]


def test_a_receiver_that_never_responds_delays_neither_the_deployment_nor_other_channels(file: Path) -> None:
    stack = simulation()
    with receiver() as slow, receiver() as quick:
        slow.open.clear()
        channel = Slack(Secret(plain=slow.url))
        with notified(file, channel, webhook(quick), wait_s=0) as journal:
            deliver(journal, stack)  # returns, although Slack has not responded
            assert stack.live == {"blue": 0, "green": 100}
            until(lambda: not unsent(journal, "webhook"), "the other channel to take note of its last answer")
            assert len(quick.got) == 3
        assert {(channel, reason) for channel, _, reason in not_delivered(file)} == {
            ("slack", "not delivered before the command ended")
        }
        assert [kind for _, kind, _ in not_delivered(file)] == ALL_KINDS


def unsent(journal: FileJournal, channel: str) -> list[Notice]:
    """Return the notices that a channel of the journal's notifier has not sent yet."""
    (take,) = journal.listeners
    (worker,) = (each for each in cast("Any", take).__self__._workers if each._channel.name == channel)
    return list(worker._unsent)


def test_a_notice_that_is_lost_while_the_command_ends_is_recorded_before_its_end(tmp_path: Path) -> None:
    recording, written, recorded = threading.Event(), threading.Event(), list[str]()

    def record(_event: str, *, kind: str, **_details: str) -> None:
        recording.set()
        written.wait(LONG_S)
        recorded.append(kind)

    sender = Notifier("local", [Slack(Secret(file=tmp_path / "absent"))], record)
    sender.take(Entry(id="1", at=0, actor="me", event="promoted", details={"deployment": "d1"}))
    assert recording.wait(LONG_S)
    threading.Timer(0.5, written.set).start()  # on a slow disk
    sender.close(0)
    assert recorded == ["success"]


@contextmanager
def raw_receiver(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a receiver that reads a request and answers as `answer` does; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as threads:

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                answer(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threads.submit(serve, listener.accept()[0])

        threads.submit(accept)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_an_answer_without_an_end_is_not_read_to_its_end(file: Path, status: str) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n\r\n".encode())
        try:
            while True:
                connection.sendall(b"x" * 65536)
        finally:
            ended.set()

    with raw_receiver(answer) as url:
        with notified(file, Webhook(Secret(plain=url))) as journal:
            journal.record("promoted", deployment="d1")
        assert ended.wait(LONG_S)
    lost = [] if status.startswith("200") else [("webhook", "success", f"response 404: {'x' * 200}")]
    assert not_delivered(file) == lost


def test_a_receiver_that_accepts_and_closes_in_the_middle_gets_a_notice_once(file: Path) -> None:
    answers: list[int] = []

    def answer(connection: socket.socket) -> None:
        answers.append(1)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")

    with raw_receiver(answer) as url, notified(file, Webhook(Secret(plain=url))) as journal:
        journal.record("promoted", deployment="d1")
    assert (answers, not_delivered(file)) == ([1], [])


def test_a_receiver_that_trickles_is_given_up_and_the_next_notice_is_sent(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "WHOLE_ATTEMPT_SECONDS", 5.0)

    def be_patient(entry: Entry) -> None:  # with the notice after it
        if entry.event == "not-notified":
            monkeypatch.setattr(notifier, "WHOLE_ATTEMPT_SECONDS", LONG_S)

    ended, answers = threading.Event(), list[int]()

    def answer(connection: socket.socket) -> None:
        answers.append(1)
        if len(answers) > 1:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.2):
            connection.sendall(b"X: y\r\n")

    with raw_receiver(answer) as url:
        with notified(file, Webhook(Secret(plain=url))) as journal:
            journal.listeners.append(be_patient)
            journal.record("start", deployment="d1")
            journal.record("promoted", deployment="d1")
        ended.set()
    ((_, kind, reason),) = not_delivered(file)
    assert (kind, reason) == ("start", "the receiver did not end its answer within 5 s")


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), ("", "is empty"), ("nonsense", "is not an http")]
)
def test_a_missing_or_wrong_secret_is_recorded(file: Path, content: str | None, reason: str) -> None:
    secret = file.with_name("slack-webhook")
    if content is not None:
        secret.write_text(content)
    with notified(file, Slack(Secret(file=secret))) as journal:
        journal.record("promoted", deployment="d1")
    ((_, _, recorded),) = not_delivered(file)
    assert reason in recorded


class Mailbox:
    """A handler of aiosmtpd that keeps what it got; recipients at `refused.example` are refused."""

    def __init__(self) -> None:
        self.got: list[Envelope] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Session, envelope: Envelope, address: str, _options: Sequence[str]
    ) -> str:
        if address.endswith("@refused.example"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.got.append(envelope)
        return "250 OK"


@contextmanager
def smarthost(**options: Any) -> Iterator[tuple[Mailbox, int]]:
    """Run a real SMTP server."""
    mailbox, port = Mailbox(), free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port, ready_timeout=LONG_S, **options)
    controller.start()
    try:
        yield mailbox, port
    finally:
        controller.stop()


def mail(port: int, **options: Any) -> Email:
    addresses = {"to": "team@storage.example", "sender": "deployments@storage.example"}
    return Email(**{**addresses, "host": "127.0.0.1", "port": port, **options})


def test_mail_has_the_event_and_its_reason(file: Path) -> None:
    with smarthost() as (mailbox, port):
        with notified(file, mail(port, require_tls=False)) as journal:
            journal.record("rollback", deployment="d1", version="v0.2.0", reason="7.00% errors")
        (envelope,) = mailbox.got
    content = str(envelope.content, "utf-8") if isinstance(envelope.content, bytes) else str(envelope.content)
    assert envelope.rcpt_tos == ["team@storage.example"]
    assert "Subject: local: rollback of v0.2.0 started" in content
    assert "reason: 7.00% errors" in content


def test_a_refused_mail_is_recorded(file: Path) -> None:
    with smarthost() as (mailbox, port):
        with notified(file, mail(port, require_tls=False, to="nobody@refused.example")) as journal:
            journal.record("promoted", deployment="d1")
        ((channel, _, reason),) = not_delivered(file)
    assert channel == "email"
    assert "no such user" in reason
    assert mailbox.got == []


def test_a_login_that_fails_for_now_is_tried_again(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = server_context(tmp_path, tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    (tmp_path / "password").write_text("sesame\n")
    later = [AuthResult(success=False, message="454 4.7.0 try again later", handled=False)] * 2  # of both methods

    def authenticate(*_arguments: object) -> AuthResult:
        return later.pop() if later else AuthResult(success=True)

    options = {"tls_context": context, "require_starttls": True, "authenticator": authenticate, "auth_required": True}
    with smarthost(**options) as (mailbox, port):
        channel = mail(port, username="storage", password=Secret(file=tmp_path / "password"))
        with notified(file, channel) as journal:
            journal.record("promoted", deployment="d1")
        assert (len(mailbox.got), not_delivered(file)) == (1, [])


def test_a_server_that_ends_after_it_has_accepted_a_mail_gets_it_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closing(server: SMTP, _argument: str) -> None:
        await server.push("421 closing")

    monkeypatch.setattr(SMTP, "smtp_QUIT", closing)
    with smarthost() as (mailbox, port):
        with notified(file, mail(port, require_tls=False)) as journal:
            journal.record("promoted", deployment="d1")
        assert (len(mailbox.got), not_delivered(file)) == (1, [])


def server_context(tmp_path: Path, trusted: Path) -> ssl.SSLContext:
    authority = make_authority("test")
    pair = issue(authority, name="server", hosts=["127.0.0.1"])
    trusted.write_text(authority.certificate)
    (tmp_path / "server.pem").write_text(pair.certificate + pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


def test_a_password_is_sent_over_verified_tls_only(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = server_context(tmp_path, tmp_path / "ca.pem")
    (tmp_path / "password").write_text("sesame\n")
    seen: list[LoginPassword] = []

    def authenticate(
        _server: Any, _session: Session, _envelope: Envelope, _how: str, data: LoginPassword
    ) -> AuthResult:
        seen.append(data)
        return AuthResult(success=data.password == b"sesame")

    options = {"tls_context": context, "require_starttls": True, "authenticator": authenticate, "auth_required": True}
    with smarthost(**options) as (mailbox, port):
        channel = mail(port, username="storage", password=Secret(file=tmp_path / "password"))
        with notified(file, channel) as journal:
            journal.record("promoted", deployment="d1")
        assert seen == []  # this machine does not trust the certificate
        ((_, _, reason),) = not_delivered(file)
        assert "certificate verify failed" in reason
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with notified(file, channel) as journal:
            journal.record("promoted", deployment="d2")
        assert [login.password for login in seen] == [b"sesame"]
        assert len(mailbox.got) == 1


def test_on_local_the_stacks_receiver_replaces_channels_that_are_not_set(tmp_path: Path) -> None:
    def names(settings: LocalSettings) -> list[str]:
        platform = platform_of(Workspace(root=tmp_path, stack="local"), settings)
        return [channel.name for channel in platform.channels()]

    assert names(LocalSettings()) == ["slack", "pagerduty", "webhook"]
    email = Notifications.model_validate_json(
        json.dumps({"email": {"to": "a@b.example", "sender": "c@b.example", "smarthost": "mail.b.example:587"}})
    )
    assert names(LocalSettings(notifications=email)) == ["slack", "pagerduty", "webhook", "email"]


def test_notices_about_monitoring_go_to_the_receivers_of_alerts(tmp_path: Path) -> None:
    configured = """{
        "notifications": {"slack": {"webhook_file": "deployments"}, "webhook": {"url_file": "hook"}},
        "receivers": {"slack": {"channel": "#a", "webhook_file": "alerts"}, "pagerduty": {"routing_key_file": "key"}}
    }"""
    channels = alert_channels(LocalSettings.model_validate_json(configured), tmp_path)
    assert set(channels) == {"slack", "pagerduty", "webhook"}
    assert channels["slack"] == Slack(Secret(file=tmp_path / "alerts"))
