"""The proof of the alerts: which alerts it covers, what it scales, and how it finds when an expression was true."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring import ALERTS
from proofs.alerts.faults import FAULTS, UNPROVEN
from proofs.alerts.monitored import REGISTERED, Received
from proofs.alerts.prove import unproven
from proofs.alerts.round import Fault, commands_for, true_between
from proofs.alerts.scaled import note, scale, scaled_durations, seconds
from tests.support.checkout import SOURCE

SHOW = """
import json
from monitoring import ALERTS
print(json.dumps([(alert.name, alert.pending, alert.keep_firing) for alert in ALERTS]))
"""


def test_each_fault_is_of_a_registered_alert_and_each_alert_has_one_or_a_reason() -> None:
    names = [fault.alert for fault in FAULTS]
    assert len(names) == len(set(names))
    assert set(names) <= REGISTERED.keys()
    assert set(names).isdisjoint(UNPROVEN)
    assert {*names, *unproven()} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.alert)
def test_the_runbook_of_a_proven_alert_has_commands_for_its_labels(fault: Fault) -> None:
    alert = REGISTERED[fault.alert]
    for firing in (firing for scenario in alert.scenarios for firing in scenario.fires):
        labels = {**firing.labels, "stack": "local", "severity": alert.severity}
        page = Received(at=0, receiver="pagerduty", status="firing", labels=labels)
        assert all("{" not in command for command in commands_for(fault, page))


def test_the_runbooks_of_proven_alerts_have_commands_unless_the_alert_ends_by_itself() -> None:
    runbooks = {fault.alert: REGISTERED[fault.remedy_of or fault.alert].runbook for fault in FAULTS}
    without = {name for name, runbook in runbooks.items() if not any(step.commands for step in runbook.remedy)}
    assert without <= {"StorageDatabaseGrowthHigh", "StorageDeadlocks"}
    assert len(runbooks) - len(without) >= 20


def test_only_durations_are_scaled_and_the_table_names_them(tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "monitoring", tmp_path / "monitoring")
    scale(tmp_path)
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, check=True
    )
    changed = {
        name: (pending, keep)
        for name, pending, keep in json.loads(shown.stdout)
        if (pending, keep) != (REGISTERED[name].pending, REGISTERED[name].keep_firing)
    }
    assert changed.keys() == scaled_durations().keys()
    assert all(seconds(each) <= 120 for pair in changed.values() for each in pair)
    assert note("StorageWarningUnattended") == "`for` 1m instead of 30m"
    assert note("StorageDatabaseDown") == ""


@pytest.mark.parametrize(("text", "expected"), [("0s", 0), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172_800)])
def test_durations_are_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([10, 11, 12, 13, 30], (10, 31)),  # the page comes at 20, the end at 60
        ([1, 2, 15, 16, 17], (15, 18)),  # it was true before, and that was over
        ([10, 11, 18, 19], (10, 20)),  # one evaluation without it is not its end
        ([], (20, 60)),
    ],
)
def test_the_moments_when_an_expression_became_true_and_false(
    times: list[float], expected: tuple[float, float]
) -> None:
    assert true_between(times, 20, 60) == expected
