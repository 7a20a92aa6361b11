"""Mutants of every alert's rule are detected by the alert's scenarios; `make prove PROOF=mutants` tries all of them."""

import pytest

from monitoring import ALERTS
from observatory.runtime import Sandbox
from tests.monitoring.mutants import UNCHANGED, mutants, surviving

pytestmark = pytest.mark.slow
SAMPLE = 12  # one of so many mutants of each alert, other ones for each alert


def test_changed_rules_break_a_scenario(sandbox: Sandbox) -> None:
    sampled = [
        mutant
        for place, alert in enumerate(ALERTS)
        for mutant in mutants(alert)
        if mutant.change == UNCHANGED or (mutant.number + place) % SAMPLE == 0
    ]
    assert len(sampled) > 2 * len(ALERTS)
    left = surviving(sandbox, sampled)
    assert [f"{mutant.alert.name}: {mutant.change}" for mutant in left if mutant.change != UNCHANGED] == []
    assert {mutant.alert.name for mutant in left} == {alert.name for alert in ALERTS}


def test_every_part_of_a_rule_has_a_mutant() -> None:
    (alert,) = (alert for alert in ALERTS if alert.name == "StoragePoolSaturated")
    changes = " ".join(mutant.change for mutant in mutants(alert))
    for part in (
        "for: 1m -> 30s",
        "keep_firing_for: 0s -> 60s",
        "label severity",
        "0.9 -> 0.945",
        "0.9 -> 0.855",
        "pgbouncer_databases_pool_size_renamed",
        'stack!="test"',
        "[120s]",
        ">= (0.9)",
        "by (stack,database)",
        "on (stack) group_left",
    ):
        assert part in changes, part
