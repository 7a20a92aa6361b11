"""Silencing alerts of a stack manually, with a reason and a duration; deployments silence their own fleet."""

from __future__ import annotations

from collections.abc import Sequence

from observatory.engines import embedded as engine
from observatory.platforms.alertmanager import Alertmanager, Silence, UnknownSilenceError
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.monitoring_files import monitoring_files
from observatory.platforms.stack_state import state_options
from observatory.security.actor import actor
from observatory.settings import FleetName
from observatory.workspace import Workspace


def list_silences(workspace: Workspace) -> list[Silence]:
    """Return the silences that may cover alerts of the stack and have not expired, also those made elsewhere.

    Raises:
        StackNotUpError: the stack is not up.
        AlertmanagerError: Alertmanager does not answer.
    """
    return stack_alertmanager(workspace).covering_silences()


def create_silence(
    workspace: Workspace,
    *,
    fleet: FleetName | None,
    alert: str | None,
    seconds: float,
    reason: str,
    matchers: Sequence[str] = (),
) -> str:
    """Silence alerts of a fleet, one alert, or those of `matchers`, for a limited time; return the silence's id.

    Returns when the silence is on disk, so that it outlives Alertmanager's process.

    Raises:
        StackNotUpError: the stack is not up.
        SilenceRefusedError: an alert cannot be silenced, or the whole stack would be.
        SilenceUsageError: a matcher, the name, the duration or the reason is not valid.
        AlertmanagerError: Alertmanager does not answer.
    """
    alertmanager = stack_alertmanager(workspace)
    made = alertmanager.silence(
        fleet=fleet, alert=alert, matchers=matchers, seconds=seconds, created_by=actor(), reason=reason
    )
    alertmanager.wait_until_kept()
    return made


def end_silence(workspace: Workspace, silence: str) -> None:
    """Expire a silence now, and return when that is on disk.

    Raises:
        StackNotUpError: the stack is not up.
        UnknownSilenceError: the stack has no such silence, or it has ended.
        AlertmanagerError: Alertmanager does not answer.
    """
    alertmanager = stack_alertmanager(workspace)
    if silence not in {each.id for each in alertmanager.covering_silences()}:
        raise UnknownSilenceError(
            f"no silence {silence!r} in the stack {workspace.stack!r}: `observatory silence list` lists their ids"
        )
    alertmanager.end(silence)
    alertmanager.wait_until_kept()


def stack_alertmanager(workspace: Workspace) -> Alertmanager:
    """Return the stack's Alertmanager; raises StackNotUpError."""
    outputs = engine.outputs(state_options(workspace))
    if not outputs:
        raise StackNotUpError(workspace.stack)
    files = monitoring_files(workspace)
    return Alertmanager(
        url=outputs["alertmanager_url"], stack=workspace.stack, client=files.client, snapshot=files.silences
    )
