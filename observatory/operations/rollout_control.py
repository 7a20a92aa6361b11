"""Control requests to a running deployment of another process, and that process's acknowledgement.

The request is a field of the rollout document. The running command reads it at each evaluation of the gate, and each
entry that it writes to the journal has the request as it knows it: such an entry is the acknowledgement.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from observatory.delivery.control import send_control_request
from observatory.documents.event_text import event_text
from observatory.documents.journal import Entry, entries
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
        acknowledged: whether the running command has read the request.
        running: whether a command runs the deployment; None where the database cannot say.
        last: the newest event of the deployment, as text.
    """

    rollout: RolloutDocument
    acknowledged: bool
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
        since = time.time()
        rollout = send_control_request(delivery_environment(platform, outputs, journal=journal), request)
    assert rollout.deployment is not None  # noqa: S101 - the request went to it
    running = _runs(platform, workspace)
    timeout_s = EVALUATIONS * platform.settings.delivery.gates.interval_s + SLACK_S if running else 0.0
    found = poll(
        lambda: _events(workspace, rollout.deployment),
        until=lambda events: acknowledges(events, request, since=since),
        timeout_s=timeout_s,
        interval_s=POLL_S,
    )
    last = next((each for each in reversed(found) if each.event != "ask"), None)
    return RolloutControl(
        rollout=platform.rollout_store.read() or rollout,
        acknowledged=acknowledges(found, request, since=since),
        running=running,
        last=event_text(last.event, last.details) if last else "",
    )


def acknowledges(found: Iterable[Entry], request: ControlRequest | None, *, since: float) -> bool:
    """Return whether the entries of a deployment say that its command has read a request that was written at `since`.

    A request that the command has carried out is no longer in the document: its result is then the acknowledgement.
    """
    results = {
        "pause": ("promoted", "rolled-back"),
        "promote": ("shift", "promoted", "rollback"),
        "abort": ("rollback", "rolled-back"),
        None: ("gate", "shift", "promoted", "rollback"),
    }
    for entry in found:
        if entry.at < since or entry.event == "ask":
            continue
        if entry.details.get("request") == request and (request or entry.event in results[None]):
            return True
        if request and entry.event in results[request]:
            return True
    return False


def _events(workspace: Workspace, deployment: Deployment | None) -> list[Entry]:
    identity = deployment.id if deployment else None
    return [entry for entry in entries(workspace.journal) if entry.details.get("deployment") == identity]


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
