"""A deployment as its pages show it, without a stack."""

from __future__ import annotations

from observatory.console import deployments
from tests.console.test_attention import delivered, deployment, status


def test_a_deployment_that_has_ended_has_no_command_that_acts_on_a_running_one() -> None:
    """Also where the document was read before its end."""
    before = status(deployment=deployment("shifting"))
    assert deployments.recorded(delivered("promoted"), before).commands == []
    assert deployments.recorded(delivered("rolled back"), before).commands == []
    assert len(deployments.recorded(delivered("under way"), before).commands) == 3
