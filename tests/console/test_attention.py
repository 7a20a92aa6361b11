"""What needs attention, without a stack."""

from __future__ import annotations

import pytest

from observatory.console import attention
from observatory.nodes.programs.alert_receiver import SILENCE_SECONDS
from observatory.operations import Status


@pytest.mark.parametrize(
    ("age", "levels"), [(None, []), (SILENCE_SECONDS - 1, []), (SILENCE_SECONDS + 1, ["critical"])]
)
def test_monitoring_without_a_heartbeat_needs_attention(age: float | None, levels: list[str]) -> None:
    status = Status(
        daemons=[], rollout=None, schema_version=None, fleet_size=1, jobs=[], passwords=[], heartbeat_age=age
    )
    found = attention.notices(status, [], [])
    assert [each.level for each in found] == levels
    assert all("alerts are not delivered" in each.text and each.command == "observatory up" for each in found)
