"""Alertmanager, and the alert receiver of `local`, which stores the notifications that PagerDuty and Slack would get.

Routes and inhibitions are the same on every stack (`monitoring`); the receivers' addresses differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monitoring import alertmanager_file, runbook_pages, webhook_receivers
from monitoring.alertmanager import MaintenanceWindow, Receiver
from monitoring.notification_templates import (
    by_name,
    email_content,
    pagerduty_content,
    slack_content,
    template_file,
)
from observatory.nodes.rollback_webhook import rollback_token_file
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.nodes.unit import Paths, Unit
from observatory.nodes.web import WebAccess, client_config, guarded_probe
from observatory.settings import EmailNotices, LocalSettings, StackSettings

SNAPSHOT_SECONDS = 5  # between two writes of silences to disk; a killed Alertmanager loses those after the last
RECEIVER_PROGRAM = Path(__file__).parent / "programs" / "alert_receiver.py"


def receiver_url(settings: StackSettings) -> str:
    """Return the receiver's address."""
    return f"https://127.0.0.1:{settings.ports.alert_receiver}"


def silences_file(paths: Paths) -> str:
    """Return the file that Alertmanager writes its silences to."""
    return f"{paths.data}/alertmanager/silences"


def _receivers(settings: StackSettings, paths: Paths) -> dict[Receiver, dict[str, Any]]:
    """Return the receivers: all alerts go to the local receiver and to those of the settings.

    Alerts that roll back also go to the scheduler.
    """
    secret = {
        "authorization": {"type": "Bearer", "credentials_file": rollback_token_file(paths)},
        "tls_config": {"ca_file": authority_file(paths)},
    }
    url = f"https://127.0.0.1:{settings.ports.rollback_webhook}/alerts"
    act = {"webhook_configs": [{"url": url, "send_resolved": False, "http_config": secret}]}
    own: dict[Receiver, dict[str, Any]] = {
        **webhook_receivers(receiver_url(settings), tls=client_config(paths)),
        "rollback": act,
    }
    further = _configured(settings, paths) if isinstance(settings, LocalSettings) else {}
    return {name: _joined(receiver, further.get(name, {})) for name, receiver in own.items()}


def receiver_secrets(settings: StackSettings, paths: Paths) -> dict[str, tuple[Path, bool]]:
    """Return the secrets of the configured receivers: by their file on the machine the file of the settings.

    The second value is whether the secret is a URL.
    """
    if not isinstance(settings, LocalSettings):
        return {}
    configured = settings.receivers
    found: dict[str, tuple[Path | None, bool]] = {
        "slack": (configured.slack.webhook_file if configured.slack else None, True),
        "pagerduty": (configured.pagerduty.routing_key_file if configured.pagerduty else None, False),
        "email": (configured.email.password_file if configured.email else None, False),
        "ticket": (configured.ticket.url_file if configured.ticket else None, True),
        "heartbeat": (configured.heartbeat.url_file if configured.heartbeat else None, True),
    }
    return {_secret_file(paths, name): (file, url) for name, (file, url) in found.items() if file}


def _secret_file(paths: Paths, receiver: str) -> str:
    return f"{paths.config}/alertmanager/secrets/{receiver}"


def _configured(settings: LocalSettings, paths: Paths) -> dict[Receiver, dict[str, Any]]:
    """Return the receivers of the settings, in Alertmanager's keys."""
    given, made = settings.receivers, dict[Receiver, dict[str, Any]]()
    if given.slack:
        address = {"api_url_file": _secret_file(paths, "slack"), "channel": given.slack.channel}
        made["slack"] = {"slack_configs": [{**slack_content(by_name), **address, "send_resolved": True}]}
    if given.pagerduty:
        address = {"routing_key_file": _secret_file(paths, "pagerduty"), "url": given.pagerduty.url}
        made["pagerduty"] = {"pagerduty_configs": [{**pagerduty_content(by_name), **address}]}
    if given.email:
        made["email"] = {"email_configs": [{**email_content(by_name), **_mail(given.email, paths)}]}
    if given.ticket:
        made["ticket"] = {"webhook_configs": [{"url_file": _secret_file(paths, "ticket")}]}
    if given.heartbeat:
        address = {"url_file": _secret_file(paths, "heartbeat")}
        made["watchdog"] = {"webhook_configs": [{**address, "send_resolved": False}]}
    return made


def _mail(given: EmailNotices, paths: Paths) -> dict[str, Any]:
    login = {"auth_username": given.username, "auth_password_file": _secret_file(paths, "email")}
    return {
        "to": given.to,
        "from": given.sender,
        "smarthost": given.smarthost,
        "require_tls": given.require_tls,
        "send_resolved": True,
        **(login if given.username else {}),
    }


def _joined(own: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Return a receiver that has the integrations of both; each delivers on its own."""
    return {kind: [*own.get(kind, ()), *further.get(kind, ())] for kind in (*own, *(further.keys() - own.keys()))}


def maintenance_windows(settings: StackSettings) -> list[MaintenanceWindow]:
    """Return the hours in which only critical alerts are delivered."""
    return [
        MaintenanceWindow(days=window.days, opens=window.opens, closes=window.closes, timezone=window.timezone)
        for window in settings.maintenance
    ]


def runbooks_url(settings: StackSettings) -> str:
    """Return the base URL of the runbooks, which the alert receiver serves."""
    return f"{receiver_url(settings)}/runbooks"


def alertmanager(settings: StackSettings, paths: Paths) -> Unit:
    """Return Alertmanager as a single node, without a cluster port."""
    port, web = settings.ports.alertmanager, WebAccess(name="alertmanager", paths=paths)
    file, templates = (f"{paths.config}/alertmanager/{name}" for name in ("alertmanager.yaml", "notifications.tmpl"))
    return Unit(
        name="alertmanager",
        command=(
            "/usr/bin/prometheus-alertmanager",
            f"--config.file={file}",
            f"--storage.path={paths.data}/alertmanager",
            f"--data.maintenance-interval={SNAPSHOT_SECONDS}s",
            f"--web.listen-address=127.0.0.1:{port}",
            *web.options,
            f"--web.external-url=https://127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--enable-feature=receiver-name-in-metrics",
            "--log.level=warn",
        ),
        ready=web.ready(port, "/-/ready"),
        watches_secrets=True,
        priority=60,
        ports={"ports.alertmanager": port},
        files={
            file: alertmanager_file(
                _receivers(settings, paths), maintenance=maintenance_windows(settings), templates=[templates]
            ),
            templates: template_file(),
            **web.files,
        },
        directories=(f"{paths.data}/alertmanager",),
        reload_signal="HUP",
        check=("/usr/bin/amtool", "check-config", file),
        reload_metrics="alertmanager_config_last_reload",
    )


def alert_receiver(settings: StackSettings, paths: Paths) -> Unit:
    """Return the alert receiver. It stores every notification; `/alerts` returns them.

    Only holders of the monitoring certificate send and read notifications. The runbooks are public.
    """
    port = settings.ports.alert_receiver
    directory, data = f"{paths.config}/alert-receiver", f"{paths.data}/alerts"
    program = f"{directory}/alert_receiver.py"
    pages = {f"{directory}/runbooks/{name}.md": text for name, text in runbook_pages().items()}
    return Unit(
        name="alert-receiver",
        command=(
            *("/usr/bin/python3", "-I", program),
            *("--port", str(port), "--data", data, "--runbooks", f"{directory}/runbooks"),
            *("--certificate", combined_file(paths, MONITORING), "--authority", authority_file(paths)),
        ),
        ready=guarded_probe(paths, port, "/health"),
        watches_secrets=True,
        priority=50,
        ports={"ports.alert_receiver": port},
        files={program: RECEIVER_PROGRAM.read_text(encoding="utf-8"), **pages},
        directories=(data,),
    )
