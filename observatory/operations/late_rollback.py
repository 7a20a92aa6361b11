"""Rollbacks after a promotion: an alert of the active fleet proposes one, or performs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from observatory.delivery.late_rollback import reason_not_to_roll_back
from observatory.documents.journal import Entry, FileJournal, entries
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
PROPOSED, PERFORMED, GIVEN_UP = "propose-rollback", "perform-rollback", "escalate"
ATTEMPTS = 5  # of one rollback: Alertmanager sends the alert again after a failure, and every 5 min while it fires

_one_at_a_time = threading.Lock()


def take_alerts(workspace: Workspace, notification: Mapping[str, Any]) -> str:
    """Handle a notification of Alertmanager's webhook, and return the decision as text.

    Raises:
        DeliveryRefusedError: there is nothing to roll back, or another deployment began since the decision.
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
        history = _history(workspace, deployment)
        begun = [entry for entry in history if entry.event == PERFORMED]
        if any(entry.event == PROPOSED for entry in history):
            return f"the rollback of {deployment.version} was already proposed"
        if not _is_unfinished(deployment, begun, fleet):
            promoted, window_s = _promoted(deployment, history), delivery.rollback_window_seconds
            if against := reason_not_to_roll_back(
                environment, document, fleet=fleet, promoted=promoted, window_s=window_s
            ):
                return f"{alert} causes no rollback: {against}"
        if len(begun) >= ATTEMPTS:
            return _given_up(journal, deployment, history)
        # A rolling update has no other fleet to return traffic to: its rollback takes time, so an operator decides.
        perform = delivery.rollback_on_alert == "perform" and deployment.source != fleet
        attempt = {"attempt": len(begun) + 1} if perform else {}
        journal.record(PERFORMED if perform else PROPOSED, **_details(deployment, alert), **attempt)
    if not perform:
        return f"{alert}: the rollback of {deployment.version} was proposed"
    roll_back_application(workspace, reason=f"{alert} fires", emergency=True, only=deployment.id)
    return f"{alert}: {deployment.version} was rolled back"


def _is_unfinished(deployment: Deployment, begun: list[Entry], fleet: FleetName) -> bool:
    """Return whether a rollback that an alert began has ended before it was done; one of an operator is left alone."""
    reasons = tuple(str(entry.details.get("reason")) for entry in begun)
    return (
        deployment.status == "rolling-back"
        and deployment.target == fleet
        and (deployment.reason or "").startswith(reasons)
    )


def _given_up(journal: FileJournal, deployment: Deployment, history: list[Entry]) -> str:
    """Record once, which notifies, that the rollback was begun as often as it may be and is not done."""
    text = f"the rollback of {deployment.version} was begun {ATTEMPTS} times and not finished: run `{COMMAND}`"
    if not any(entry.event == GIVEN_UP and entry.details.get("reason") == text for entry in history):
        journal.record(GIVEN_UP, deployment=deployment.id, version=deployment.version, reason=text)
    return text


def promotion_of(workspace: Workspace, deployment: Deployment) -> float | None:
    """Return when a deployment was promoted, in seconds since the epoch; None where that is not known."""
    return _promoted(deployment, _history(workspace, deployment))


def _history(workspace: Workspace, deployment: Deployment) -> list[Entry]:
    return [entry for entry in entries(workspace.journal) if entry.details.get("deployment") == deployment.id]


def _promoted(deployment: Deployment, history: list[Entry]) -> float | None:
    """Return the time in the document; in one of an earlier version it is missing, and the journal may have it."""
    if deployment.promoted is not None:
        return deployment.promoted
    return next((entry.at for entry in reversed(history) if entry.event == "promoted"), None)


def _details(deployment: Deployment, alert: str) -> dict[str, str]:
    return {
        "deployment": deployment.id,
        "version": deployment.version,
        "fleet": deployment.target,
        "reason": f"{alert} fires",
        "command": COMMAND,
    }
