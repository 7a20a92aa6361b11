"""Alertmanager, and the alert receiver of `local`, which stores the notifications that PagerDuty and Slack would get.

Routes and inhibitions are the same on every stack (`monitoring`); the receivers' addresses differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monitoring import alertmanager_file, runbook_pages, webhook_receivers
from monitoring.alertmanager import Receiver
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.nodes.unit import Paths, Unit
from observatory.nodes.web import WebAccess, client_config, guarded_probe
from observatory.settings import StackSettings

SNAPSHOT_SECONDS = 5  # between two writes of silences to disk; a killed Alertmanager loses those after the last
RECEIVER_PROGRAM = Path(__file__).parent / "programs" / "alert_receiver.py"


def receiver_url(settings: StackSettings) -> str:
    """Return the receiver's address."""
    return f"https://127.0.0.1:{settings.ports.alert_receiver}"


def silences_file(paths: Paths) -> str:
    """Return the file that Alertmanager writes its silences to."""
    return f"{paths.data}/alertmanager/silences"


def rollback_token_file(paths: Paths) -> str:
    """Return the file with the token that Alertmanager sends to the scheduler's rollback webhook."""
    return f"{paths.config}/rollback-webhook/token"


def _receivers(settings: StackSettings, paths: Paths) -> dict[Receiver, dict[str, Any]]:
    """Return the receivers: all alerts go to the local receiver, those that roll back also to the scheduler."""
    secret = {
        "authorization": {"type": "Bearer", "credentials_file": rollback_token_file(paths)},
        "tls_config": {"ca_file": authority_file(paths)},
    }
    url = f"https://127.0.0.1:{settings.ports.rollback_webhook}/alerts"
    act = {"webhook_configs": [{"url": url, "send_resolved": False, "http_config": secret}]}
    return {**webhook_receivers(receiver_url(settings), tls=client_config(paths)), "rollback": act}


def runbooks_url(settings: StackSettings) -> str:
    """Return the base URL of the runbooks, which the alert receiver serves."""
    return f"{receiver_url(settings)}/runbooks"


def alertmanager(settings: StackSettings, paths: Paths) -> Unit:
    """Return Alertmanager as a single node, without a cluster port."""
    port, web = settings.ports.alertmanager, WebAccess(name="alertmanager", paths=paths)
    file = f"{paths.config}/alertmanager/alertmanager.yaml"
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
        files={file: alertmanager_file(_receivers(settings, paths)), **web.files},
        directories=(f"{paths.data}/alertmanager",),
        reload_signal="HUP",
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
