"""Notifications of Slack, PagerDuty and email, as a real Alertmanager renders and sends them."""

from __future__ import annotations

import email
import email.policy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope, Session

from monitoring import ALERTS, Scope, alertmanager_file, webhook_receivers
from monitoring.notification_templates import (
    by_name,
    email_content,
    inline,
    pagerduty_content,
    slack_content,
    template_file,
)
from monitoring.prometheus_operator import content
from observatory.nodes import Paths
from observatory.nodes.web import client_config
from observatory.runtime import Sandbox
from tests.monitoring.conftest import Pager
from tests.notifications.receiver import Receiver, receiver
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow

TEMPLATES = "/srv/etc/alertmanager/notifications.tmpl"
HOSTILE = "<!channel> <https://evil.example|log in> <script>alert(1)</script> \"&' $1 {{ .Status }} *b*"
SPOOF = "ok\r\nBcc: all@evil.example\u202egnp"
ALERT: dict[str, Any] = {
    "labels": {"alertname": "StorageDiskWarning", "stack": "a", "severity": "warning", "path": HOSTILE, "spoof": SPOOF},
    "annotations": {
        "summary": f"Little space {HOSTILE}",
        "description": f"12.5% of {HOSTILE} is free.",
        "runbook_url": "https://docs.example.com/runbooks/StorageDiskWarning?a=1&b=2",
        "dashboard_url": "javascript:alert(1)",
    },
}
PLAIN: dict[str, Any] = {
    "labels": {"alertname": "StorageDatabaseDown", "stack": "a", "severity": "critical", "category": "availability"},
    "annotations": {
        "summary": "PostgreSQL does not answer",
        "description": "instance i (value 0).",
        "runbook_url": "https://docs.example.com/runbooks/StorageDatabaseDown",
        "dashboard_url": "https://grafana.example.com/d/database",
    },
}
WARNING: dict[str, Any] = {
    **PLAIN,
    "labels": {"alertname": "StorageIoStall", "stack": "a", "severity": "warning", "category": "resources"},
}


class Mailbox:
    """A handler of aiosmtpd that keeps mails."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        mail["X-Recipients"] = ",".join(envelope.rcpt_tos)
        self.mails.append(mail)
        return "250 OK"


@contextmanager
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    kept, port = Mailbox(), free_port()
    controller = Controller(kept, hostname="127.0.0.1", port=port, ready_timeout=PATIENCE_S)
    controller.start()
    try:
        yield kept, port
    finally:
        controller.stop()


def configuration(pager: Pager, slack: str, pagerduty: str, smtp: int, render: Any = by_name) -> str:
    """Return a configuration with receivers of the real kinds at the addresses of captures."""
    receivers = webhook_receivers(pager.receiver, tls=client_config(Paths()))
    receivers["slack"] = {"slack_configs": [{**slack_content(render), "api_url": slack, "channel": "#alerts"}]}
    key = {"routing_key": "key", "url": pagerduty}
    receivers["pagerduty"] = {"pagerduty_configs": [{**pagerduty_content(render), **key}]}
    to = {"to": "on-call@example.com", "from": "alerts@example.com", "smarthost": f"127.0.0.1:{smtp}"}
    receivers["email"] = {"email_configs": [{**email_content(render), **to, "require_tls": False}]}
    return alertmanager_file(receivers, templates=[TEMPLATES] if render is by_name else [])


def fire(pager: Pager, *alerts: dict[str, Any]) -> None:
    pager.http.post(f"{pager.alertmanager}/api/v2/alerts", json=list(alerts)).raise_for_status()


def texts(body: Any) -> Iterator[str]:
    """Yield every text of a JSON document."""
    if isinstance(body, str):
        yield body
    for each in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from texts(each)


@pytest.mark.parametrize("render", [by_name, inline], ids=["file", "inline"])
def test_hostile_markup_is_text_in_every_receiver(pager: Pager, render: Any) -> None:
    pager.sandbox.write_file(TEMPLATES, template_file())
    with receiver() as slack, receiver() as pagerduty, mailbox() as (mails, smtp):
        pager.configure(configuration(pager, slack.url, pagerduty.url, smtp, render))
        fire(pager, ALERT, {**ALERT, "labels": {**ALERT["labels"], "severity": "critical"}})
        until(lambda: len(slack.got) >= 2 and pagerduty.got and mails.mails, "a notification of each receiver")
    check_slack(slack)
    check_pagerduty(pagerduty)
    check_mail(mails.mails[0])


def check_slack(slack: Receiver) -> None:
    for message in slack.got:
        assert message["channel"] == "#alerts"
        (attachment,) = message["attachments"]
        tags = {tag for text in texts(message) for tag in re.findall(r"<[^>]*>?", text)}
        assert tags == {"<https://docs.example.com/runbooks/StorageDiskWarning?a=1&amp;b=2|Runbook>"}
        assert "12.5% of &lt;!channel&gt; &lt;https://evil.example|log in&gt;" in attachment["text"]
        assert re.fullmatch(r"\[FIRING:1\] (warning|critical): StorageDiskWarning on a", attachment["title"])
        assert "spoof=ok Bcc: all@evil.example gnp" in attachment["text"]
        assert "javascript" not in json.dumps(message)
        assert attachment["color"] in ("warning", "danger")


def check_pagerduty(pagerduty: Receiver) -> None:
    event = pagerduty.got[0]
    assert event["routing_key"] == "key"
    assert event["payload"]["severity"] == "critical"
    assert event["payload"]["summary"].startswith(
        "[FIRING:1] critical: StorageDiskWarning on a: Little space <!channel>"
    )
    details = event["payload"]["custom_details"]
    assert f"12.5% of {HOSTILE} is free." in details["alerts"]
    assert details["runbook"] == "https://docs.example.com/runbooks/StorageDiskWarning?a=1&b=2"
    assert "\u202e" not in event["payload"]["summary"]
    assert "\r" not in details["alerts"]


def check_mail(mail: Any) -> None:
    assert mail["X-Recipients"] == "on-call@example.com"
    assert "Bcc" not in mail
    assert mail["Subject"] == "[FIRING:1] warning: StorageDiskWarning on a"
    html = mail.get_body(("html",)).get_content()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert 'href="https://docs.example.com/runbooks/StorageDiskWarning?a=1&amp;b=2"' in html
    assert "javascript" not in html
    plain = mail.get_body(("plain",)).get_content()
    assert "12.5% of <!channel>" in plain
    assert "spoof=ok Bcc: all@evil.example gnp" in plain


FIRST = "The first 10 of 12 alerts."


def with_ten_alerts(mailbox: Mailbox) -> list[Any]:
    """Return the mails that show ten alerts."""
    return [mail for mail in mailbox.mails if mail.get_body(("plain",)).get_content().count("instance=") == 10]


def test_every_receiver_shows_title_value_runbook_and_dashboard(pager: Pager) -> None:
    pager.sandbox.write_file(TEMPLATES, template_file())
    with receiver() as slack, receiver() as pagerduty, mailbox() as (mails, smtp):
        pager.configure(configuration(pager, slack.url, pagerduty.url, smtp))
        many = [{**WARNING, "labels": {**WARNING["labels"], "instance": str(number)}} for number in range(12)]
        fire(pager, PLAIN, *many)

        def arrived() -> bool:  # with all alerts: the first one may be sent before the last alert is taken
            first = json.dumps(slack.got)
            return bool(FIRST in first and len(slack.got) >= 2 and pagerduty.got and with_ten_alerts(mails))

        until(arrived, "a notification of each receiver")
    sent = [json.dumps(slack.got, ensure_ascii=False), json.dumps(pagerduty.got[0])]
    html, plain = (with_ten_alerts(mails)[0].get_body((kind,)).get_content() for kind in ("html", "plain"))
    for text in (*sent, html, plain):
        for shown in ("PostgreSQL does not answer", "instance i (value 0).", "https://grafana.example.com/d/database"):
            assert shown in text
        assert "https://docs.example.com/runbooks/StorageDatabaseDown" in text
        assert "no value" not in text
        assert "ZgotmplZ" not in text
    assert FIRST in sent[0]
    assert plain.count("instance=") == 10
    links = {link["text"]: link["href"] for link in pagerduty.got[0]["links"]}
    assert links["Dashboard"] == "https://grafana.example.com/d/database"
    assert slack.got[0]["attachments"][0]["title"].endswith(" on a")


def test_a_receiver_that_is_down_delays_no_other_and_is_named(pager: Pager) -> None:
    pager.sandbox.write_file(TEMPLATES, template_file())
    with receiver() as slack, receiver() as hung, mailbox() as (mails, smtp):
        hung.open.clear()  # it accepts connections and does not respond
        slack.responses += [(404, {})]  # as for a channel that does not exist
        pager.configure(configuration(pager, slack.url, hung.url, smtp))
        fire(pager, PLAIN, WARNING)
        until(lambda: mails.mails and len(slack.got) >= 2, "the notifications of the other receivers")
        until(lambda: failed(pager) == {"pagerduty", "slack"}, "the failures in Alertmanager's metrics")


def failed(pager: Pager) -> set[str]:
    """Return the receivers whose notifications failed."""
    text = pager.http.get(f"{pager.alertmanager}/metrics").raise_for_status().text
    pattern = r'alertmanager_notifications_failed_total\{[^}]*receiver_name="(\w+)"[^}]*\} ([1-9]\d*)'
    return {name for name, _ in re.findall(pattern, text)}


def test_a_malformed_template_is_refused(sandbox: Sandbox) -> None:
    file = "/srv/etc/alertmanager.yaml"
    sandbox.write_file(file, alertmanager_file(webhook_receivers("http://127.0.0.1:1", tls={}), templates=[TEMPLATES]))
    for wrong in ("{{ define", "{{ end }}", '{{ define "x" }}{{ .Status | unknown }}{{ end }}'):
        sandbox.write_file(TEMPLATES, template_file() + wrong)
        done = sandbox.run(["/usr/bin/amtool", "check-config", file], check=False)
        assert done.returncode != 0
        assert "notifications.tmpl" in done.stdout + done.stderr
    sandbox.write_file(TEMPLATES, template_file())
    sandbox.run(["/usr/bin/amtool", "check-config", file])


def test_a_template_that_does_not_exist_is_refused() -> None:
    for render in (by_name, inline):
        with pytest.raises(KeyError, match=r"storage\.slack\.texts"):
            render("storage.slack.texts")


def test_the_operator_gets_the_same_content_in_its_own_keys() -> None:
    event = content(pagerduty_content(inline))
    assert {"key": "runbook", "value": "{{ .CommonAnnotations.runbook_url }}"} in event["details"]
    assert event["pagerDutyLinkConfigs"][0] == {"href": "{{ .CommonAnnotations.runbook_url }}", "alt": "Runbook"}
    assert content(email_content(inline))["headers"][0]["key"] == "Subject"
    assert content(slack_content(inline)) == slack_content(inline)


def test_the_description_of_every_alert_has_its_value() -> None:
    assert [alert.name for alert in ALERTS if "$value" not in alert.description] == []
    assert all(alert.annotations(Scope(stack="s", runbooks="https://r"))["runbook_url"] for alert in ALERTS)
