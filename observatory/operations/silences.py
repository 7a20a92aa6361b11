"""Silencing alerts of a stack manually, with a reason and a duration; deployments silence their own fleet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from observatory.delivery.environment import MetricsUnavailableError
from observatory.operations.stack_monitoring import stack_alertmanager, stack_prometheus
from observatory.platforms.alertmanager import Silence, UnknownSilenceError
from observatory.platforms.silence_reach import unreached
from observatory.progress import Phase, Progress, Reporter, silent, tell
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
    report: Reporter = silent,
) -> str:
    """Silence alerts of a fleet, one alert, or those of `matchers`, for a limited time; return the silence's id.

    Returns when the silence is on disk, so that it outlives Alertmanager's process. `report` gets a warning if no alert
    can have the labels of the silence, or nothing has them now.

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
    values = _values(workspace)
    for problem in unreached(fleet=fleet, alert=alert, matchers=matchers, values=values):
        tell(report, Progress(task=f"the silence mutes nothing: {problem}", phase=Phase.WARNED))
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


def _values(workspace: Workspace) -> Callable[[str], Collection[str]]:
    """Return what returns the values that a label of the stack's series has now."""
    prometheus = stack_prometheus(workspace)

    def values(label: str) -> Collection[str]:
        try:
            return prometheus.label_values(label, stack=workspace.stack)
        except MetricsUnavailableError:  # the silence is made, and may be needed because Prometheus is ill
            return ()

    return values
