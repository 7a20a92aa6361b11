"""Control requests to a running deployment of another process, and that process's acknowledgement.

Both are fields of the rollout document. At each evaluation of the gate the running command reads the request, and
writes how many requests it has read: that is the acknowledgement, on every platform and by no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from observatory.delivery.control import acknowledges, is_replaced, send_control_request
from observatory.documents.event_text import event_text
from observatory.documents.journal import entries
from observatory.documents.rollout import Deployment, RolloutDocument
from observatory.errors import ObservatoryError
from observatory.operations.delivery_journal import open_journal
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.delivery_environment import delivery_environment
from observatory.platforms.platform import Platform
from observatory.progress import silent
from observatory.waiting import poll
from observatory.workspace import Workspace

ControlRequest = Literal["pause", "promote", "abort"]
EVALUATIONS = 3  # that the command may miss before it counts as busy with something else
SLACK_S = 30.0  # an evaluation also probes the new version, which a busy machine delays
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class RolloutControl:
    """The result of a control request.

    Attributes:
        rollout: the document with the request.
        acknowledged: whether the running command has read the request, and follows it.
        replaced: whether it has read a later request of another operator, and follows that one.
        running: whether a command runs the deployment; None where the database cannot say.
        last: the newest event of the deployment in this machine's journal, as text; empty where it has none.
    """

    rollout: RolloutDocument
    acknowledged: bool
    replaced: bool
    running: bool | None
    last: str


def control_rollout(workspace: Workspace, request: ControlRequest | None) -> RolloutControl:
    """Send a request to the running deployment of another process; None resumes a paused one.

    Waits until that process has acknowledged the request: a few evaluations of the gate at most.

    Raises:
        StackNotUpError: the stack was never up.
        DeliveryRefusedError: no deployment is under way.
    """
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=False)
    with open_journal(platform, silent) as journal:
        rollout = send_control_request(delivery_environment(platform, outputs, journal=journal), request)
    assert rollout.deployment is not None  # noqa: S101 - the request went to it
    identity, asked = rollout.deployment.id, rollout.deployment.asked

    def sent_to(found: RolloutDocument) -> Deployment | None:
        return found.deployment if found.deployment and found.deployment.id == identity else None

    def follows(found: RolloutDocument) -> bool:
        deployment = sent_to(found)
        return deployment is not None and acknowledges(deployment, request, asked=asked)

    def replaced(found: RolloutDocument) -> bool:
        deployment = sent_to(found)
        return deployment is not None and is_replaced(deployment, asked=asked)

    running = _runs(platform, workspace)
    timeout_s = EVALUATIONS * platform.settings.delivery.gates.interval_s + SLACK_S if running else 0.0
    found = poll(
        lambda: platform.rollout_store.read() or rollout,
        until=lambda found: follows(found) or replaced(found) or found.unfinished is None,
        timeout_s=timeout_s,
        interval_s=POLL_S,
    )
    return RolloutControl(
        rollout=found,
        acknowledged=follows(found),
        replaced=replaced(found),
        running=running,
        last=_last_event(workspace, identity),
    )


def _last_event(workspace: Workspace, deployment: str) -> str:
    """Return the newest event of a deployment in this machine's journal, as text; empty where there is none."""
    found = [each for each in entries(workspace.journal) if each.details.get("deployment") == deployment]
    last = next((each for each in reversed(found) if each.event != "ask"), None)
    return event_text(last.event, last.details) if last else ""


def _runs(platform: Platform, workspace: Workspace) -> bool | None:
    """Return whether a command holds the deployment lock; None without the database."""
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.advisory_locks import DEPLOYMENT_LOCK, is_held  # noqa: PLC0415

    try:
        conninfo = platform.administrator(required_outputs(platform, show_secrets=True))
        with connect(conninfo, purpose=f"control of {workspace.stack}") as connection:
            return is_held(connection, DEPLOYMENT_LOCK)
    except ObservatoryError:
        return None
