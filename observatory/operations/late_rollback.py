"""What an alert of the fleet that serves does after a promotion: it proposes the rollback, or performs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from observatory.delivery.late_rollback import reason_not_to_roll_back
from observatory.documents.journal import Entry, entries
from observatory.documents.rollout import Deployment
from observatory.operations.delivery import roll_back_application
from observatory.operations.environments import environment_of, known_of
from observatory.operations.journal import open_journal
from observatory.progress import silent
from observatory.settings import FLEETS, FleetName, load_file
from observatory.workspace import Workspace

COMMAND = "observatory rollback --method blue-green --emergency"
DECIDED = ("propose-rollback", "perform-rollback")  # a deployment has one such entry at most

_one_at_a_time = threading.Lock()


def take_alerts(workspace: Workspace, notification: Mapping[str, Any]) -> str:
    """Take a notification of Alertmanager's webhook, and return what came of it, in words.

    Raises:
        DeliveryRefusedError: there is nothing to roll back to.
        RollbackFailedError: the rollback failed; it was escalated.
    """
    for alert in notification.get("alerts", ()):
        labels = alert.get("labels", {})
        ours = labels.get("stack") == workspace.stack and labels.get("rollback") == "true"
        if alert.get("status") == "firing" and ours and labels.get("fleet") in FLEETS:
            with _one_at_a_time:
                return _decide(workspace, labels["fleet"], str(labels.get("alertname")))
    return "no alert that rolls back"


def _decide(workspace: Workspace, fleet: FleetName, alert: str) -> str:
    settings, known = load_file(workspace.config_file), known_of(workspace, show_secrets=False)
    with open_journal(workspace, settings, silent) as journal:
        environment = environment_of(workspace, settings, known, journal=journal)
        document = environment.store.read()
        if document is None or document.deployment is None:
            return "nothing was deployed"
        deployment = document.deployment
        history = [entry for entry in entries(workspace.journal) if entry.details.get("deployment") == deployment.id]
        if any(entry.event in DECIDED for entry in history):
            return f"the rollback of {deployment.version} was decided on before"
        window_s = settings.delivery.rollback_window_seconds
        against = reason_not_to_roll_back(
            environment, document, fleet=fleet, promoted=_promoted(history), window_s=window_s
        )
        if against:
            return f"{alert} rolls nothing back: {against}"
        # A rolling update has no other fleet to give the traffic to: going back takes its time, and a person.
        perform = settings.delivery.rollback_on_alert == "perform" and deployment.source != fleet
        journal.record("perform-rollback" if perform else "propose-rollback", **_details(deployment, alert))
    if not perform:
        return f"{alert}: the rollback of {deployment.version} was proposed"
    roll_back_application(workspace, reason=f"{alert} fires", emergency=True)
    return f"{alert}: {deployment.version} was rolled back"


def _promoted(history: list[Entry]) -> float | None:
    return next((entry.at for entry in reversed(history) if entry.event == "promoted"), None)


def _details(deployment: Deployment, alert: str) -> dict[str, str]:
    return {
        "deployment": deployment.id,
        "version": deployment.version,
        "fleet": deployment.target,
        "reason": f"{alert} fires",
        "command": COMMAND,
    }
