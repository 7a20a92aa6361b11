"""What needs attention, without a stack."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from observatory.console import attention
from observatory.documents.rollout import Deployment, FleetState, RolloutDocument
from observatory.documents.rollout import Status as DeploymentStatus
from observatory.nodes.programs.alert_receiver import SILENCE_SECONDS
from observatory.operations import ActiveAlert, AlertRule, DaemonStatus, DeliveryReport, Status
from observatory.operations.delivery_report import Outcome

BLUE = FleetState(version="v1", sha256="0" * 64, weight=100)
ALERT = ActiveAlert(state="firing", since=datetime.now(UTC), labels={}, description="", muted=True)
RULE = AlertRule(
    name="StorageDiskCritical",
    severity="critical",
    component="",
    category="",
    summary="the disk is full",
    state="firing",
    alerts=(ALERT,),
    problem="",
)


def daemon(running: str, **changes: Any) -> DaemonStatus:
    found = DaemonStatus(name="storage-blue-1", address="-", version="v1", pid=1, health="ready", memory_mb=1)
    return replace(found, running_version=running, **changes)


def status(*daemons: DaemonStatus, deployment: Deployment | None = None) -> Status:
    document = RolloutDocument(blue=BLUE, green=replaced(weight=0), deployment=deployment)
    return Status(daemons=list(daemons), rollout=document, schema_version=1, fleet_size=1, jobs=[], passwords=[])


def replaced(**changes: Any) -> FleetState:
    return BLUE.model_copy(update=changes)


def deployment(state: DeploymentStatus) -> Deployment:
    return Deployment(
        id="d1",
        version="v2",
        sha256="0" * 64,
        strategy="canary",
        source="green",
        target="blue",
        weights=(10, 100),
        bake_s=1,
        status=state,
        actor="a",
        reason="a reason",
        started=1,
        before=BLUE,
    )


def delivered(outcome: Outcome) -> DeliveryReport:
    return DeliveryReport(
        id="d1",
        actor="a",
        version="v2",
        strategy="canary",
        source="green",
        target="blue",
        started=1,
        ended=2,
        outcome=outcome,
        reason="the balancer does not answer",
        gates={},
        entries=[],
    )


def levels(found: Status, rules: list[AlertRule] | None = None, *deliveries: DeliveryReport) -> list[tuple[str, str]]:
    """Return the level of each notice, with its text."""
    listed = attention.notices(found, [RULE_THAT_IS_QUIET] if rules is None else rules, deliveries, [])
    return [(each.level, each.text) for each in listed]


RULE_THAT_IS_QUIET = replace(RULE, state="inactive", alerts=())


def test_a_healthy_stack_needs_no_attention() -> None:
    assert levels(status(daemon("v1")), None, delivered("promoted")) == []
    assert levels(status(daemon("v1"), deployment=deployment("promoted")), None, delivered("rolled back")) == []


def test_an_instance_with_another_version_needs_attention() -> None:
    [(level, text)] = levels(status(daemon("v2")))
    assert level == "critical"
    assert text == "storage-blue-1 runs v2, and v1 is deployed"
    assert levels(status(daemon("v2", health="off"))) == []
    assert levels(status(daemon("v2"), deployment=deployment("shifting"))) == []  # it is being replaced


def test_a_stack_with_another_version_is_not_healthy() -> None:
    assert not status(daemon("v2")).healthy
    assert status(daemon("v1")).healthy
    assert status(daemon("v2"), deployment=deployment("shifting")).healthy


@pytest.mark.parametrize(("state", "level"), [("rolling-back", "critical"), ("rolled-back", "warning")])
def test_an_escalated_deployment_needs_attention(state: DeploymentStatus, level: str) -> None:
    found = status(daemon("v1"), deployment=deployment(state))
    assert levels(found, None, delivered("escalated")) == [
        (level, "The deployment of v2 requires an operator: the balancer does not answer")
    ]
    assert levels(found, None, delivered("escalated"), delivered("promoted")) == []


def test_a_paused_deployment_needs_attention() -> None:
    found = status(daemon("v1"), deployment=deployment("paused"))
    assert levels(found) == [("warning", "The deployment of v2 is paused: a reason")]


def test_a_critical_alert_that_is_muted_needs_attention() -> None:
    for severity, expected in (("critical", [("warning", f"{RULE.name}, muted: {RULE.summary}")]), ("warning", [])):
        assert levels(status(daemon("v1")), [replace(RULE, severity=severity)]) == expected
    sent = replace(RULE, alerts=(ALERT, replace(ALERT, muted=False)))
    assert levels(status(daemon("v1")), [sent]) == [("critical", f"{RULE.name}: {RULE.summary}")]


@pytest.mark.parametrize(
    ("age", "levels"), [(None, []), (SILENCE_SECONDS - 1, []), (SILENCE_SECONDS + 1, ["critical"])]
)
def test_monitoring_without_a_heartbeat_needs_attention(age: float | None, levels: list[str]) -> None:
    status = Status(
        daemons=[], rollout=None, schema_version=None, fleet_size=1, jobs=[], passwords=[], heartbeat_age=age
    )
    found = attention.notices(status, [], [], [])
    assert [each.level for each in found] == levels
    assert all("alerts are not delivered" in each.text and each.command == "observatory up" for each in found)
