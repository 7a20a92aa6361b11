"""Rollbacks after a promotion: an alert of the active fleet proposes one, or performs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from observatory.delivery.late_rollback import reason_not_to_roll_back
from observatory.documents.journal import Entry, entries
from observatory.documents.rollout import Deployment
from observatory.operations.application_rollback import roll_back_application
from observatory.operations.delivery_journal import open_journal
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.delivery_environment import delivery_environment
from observatory.progress import silent
from observatory.settings import FLEETS, FleetName
from observatory.workspace import Workspace

COMMAND = "observatory rollback --method blue-green --emergency"
DECIDED = ("propose-rollback", "perform-rollback")  # a deployment has one such entry at most

_one_at_a_time = threading.Lock()


def take_alerts(workspace: Workspace, notification: Mapping[str, Any]) -> str:
    """Handle a notification of Alertmanager's webhook, and return the decision as text.

    Raises:
        DeliveryRefusedError: there is nothing to roll back.
        RollbackFailedError: the rollback failed and was escalated.
    """
    for alert in notification.get("alerts", ()):
        labels = alert.get("labels", {})
        ours = labels.get("stack") == workspace.stack and labels.get("rollback") == "true"
        if alert.get("status") == "firing" and ours and labels.get("fleet") in FLEETS:
            with _one_at_a_time:
                return _decide(workspace, labels["fleet"], str(labels.get("alertname")))
    return "no alert for a rollback"


def _decide(workspace: Workspace, fleet: FleetName, alert: str) -> str:
    platform = open_platform(workspace)
    delivery, outputs = platform.settings.delivery, required_outputs(platform, show_secrets=False)
    with open_journal(platform, silent) as journal:
        environment = delivery_environment(platform, outputs, journal=journal)
        document = environment.store.read()
        if document is None or document.deployment is None:
            return "nothing was deployed"
        deployment = document.deployment
        history = [entry for entry in entries(workspace.journal) if entry.details.get("deployment") == deployment.id]
        if any(entry.event in DECIDED for entry in history):
            return f"the rollback of {deployment.version} was already decided"
        window_s = delivery.rollback_window_seconds
        against = reason_not_to_roll_back(
            environment, document, fleet=fleet, promoted=_promoted(history), window_s=window_s
        )
        if against:
            return f"{alert} causes no rollback: {against}"
        # A rolling update has no other fleet to return traffic to: its rollback takes time, so an operator decides.
        perform = delivery.rollback_on_alert == "perform" and deployment.source != fleet
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
