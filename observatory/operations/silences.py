"""Holding alerts of a stack back by hand, for a reason and a time; deployments do it by themselves."""

from __future__ import annotations

from observatory.operations.bootstrap import OperationError
from observatory.operations.state import outputs
from observatory.platforms.alertmanager import Alertmanager, Silence
from observatory.security.actor import actor
from observatory.settings import FleetName
from observatory.workspace import Workspace


def list_silences(workspace: Workspace) -> list[Silence]:
    """Return the stack's silences that have not ended.

    Raises:
        OperationError: the stack is not up.
        AlertmanagerError: Alertmanager does not answer.
    """
    return _alertmanager(workspace).silences()


def add_silence(
    workspace: Workspace, *, fleet: FleetName | None, alert: str | None, seconds: float, reason: str
) -> str:
    """Hold back a fleet's alerts, an alert, or one of a fleet, and return the silence's id.

    Raises:
        OperationError: the stack is not up.
        SilenceRefusedError: it would hold back what is never silenced, or all of the stack.
        AlertmanagerError: Alertmanager does not answer.
    """
    alertmanager = _alertmanager(workspace)
    return alertmanager.silence(fleet=fleet, alert=alert, seconds=seconds, by=actor(), reason=reason)


def end_silence(workspace: Workspace, silence: str) -> None:
    """End a silence now.

    Raises:
        OperationError: the stack is not up.
        AlertmanagerError: Alertmanager does not answer, or knows no such silence.
    """
    _alertmanager(workspace).end(silence)


def _alertmanager(workspace: Workspace) -> Alertmanager:
    known = outputs(workspace)
    if not known:
        raise OperationError(f"the stack {workspace.stack!r} is not up: run `observatory up` first")
    return Alertmanager(url=known["alertmanager_url"], stack=workspace.stack)
