"""The Prometheus and the Alertmanager of a stack, as its outputs have them."""

from __future__ import annotations

from typing import Any

from observatory.engines import embedded as engine
from observatory.platforms.alertmanager import Alertmanager
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.monitoring_files import monitoring_files
from observatory.platforms.prometheus_client import PrometheusClient
from observatory.platforms.stack_state import state_options
from observatory.workspace import Workspace


def stack_alertmanager(workspace: Workspace) -> Alertmanager:
    """Return the stack's Alertmanager; raises StackNotUpError."""
    url, files = _outputs(workspace)["alertmanager_url"], monitoring_files(workspace)
    return Alertmanager(url=url, stack=workspace.stack, client=files.client, snapshot=files.silences)


def stack_prometheus(workspace: Workspace) -> PrometheusClient:
    """Return the stack's Prometheus; raises StackNotUpError."""
    url = _outputs(workspace)["prometheus_url"]
    return PrometheusClient(url=url, client=monitoring_files(workspace).client)


def _outputs(workspace: Workspace) -> dict[str, Any]:
    outputs = engine.outputs(state_options(workspace))
    if not outputs:
        raise StackNotUpError(workspace.stack)
    return dict(outputs)
