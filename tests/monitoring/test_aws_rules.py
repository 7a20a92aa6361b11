"""The rules of an AWS stack, which do not use the metrics of the balancer, are valid and fire as expected."""

from typing import Any

import pytest
import yaml

from monitoring import Scope, rule_file
from observatory.runtime import Sandbox

SCOPE = Scope(stack="s1", runbooks="http://runbooks", platform="aws")
UP = 'up{{stack="s1",job="storage",fleet="{fleet}",instance="{instance}"}}'
REQUESTS = 'storage_http_requests_total{{stack="s1",fleet="{fleet}",instance="{instance}",route="/v1/traces"}}'


def series(fleet: str, instance: str, *, up: str, requests: str) -> dict[str, str]:
    return {
        UP.format(fleet=fleet, instance=instance): up,
        REQUESTS.format(fleet=fleet, instance=instance): requests,
    }


def firing(sandbox: Sandbox, alert: str, values: dict[str, str], *, at: str) -> Any:
    """Return promtool's report of the firing alerts at a time; empty if the alert does not fire."""
    sandbox.write_file("/srv/etc/rules.yaml", rule_file(SCOPE))
    test = {
        "interval": "5s",
        "input_series": [{"series": name, "values": value} for name, value in values.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []}],
    }
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "5s", "tests": [test]}
    sandbox.write_file("/srv/etc/tests.yaml", yaml.safe_dump(document))
    done = sandbox.run(["/usr/bin/promtool", "test", "rules", "/srv/etc/tests.yaml"], check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_promtool_accepts_the_rules(sandbox: Sandbox) -> None:
    sandbox.write_file("/srv/etc/rules.yaml", rule_file(SCOPE))
    done = sandbox.run(["/usr/bin/promtool", "check", "rules", "--lint=all", "/srv/etc/rules.yaml"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("blue", "green", "fires"),
    [
        ("1x5 0x200", "1x200", "blue"),  # the fleet with all requests has no instance left
        ("1x5 _x200", "1x200", "blue"),  # its machines are gone, with their series
        ("1x200", "0x200", ""),  # a fleet without traffic
        ("1x5 0 1x200", "1x200", ""),  # one scrape failed
    ],
)
def test_fleet_with_requests_and_without_instances_is_down(sandbox: Sandbox, blue: str, green: str, fires: str) -> None:
    values = {
        **series("blue", "i-1", up=blue, requests="0+50x20 1000x200"),
        **series("green", "i-2", up=green, requests="0x200"),
    }
    report = firing(sandbox, "StorageServiceDown", values, at="3m")
    assert fires in report if fires else report == "", report


def test_instance_that_does_not_respond_is_named(sandbox: Sandbox) -> None:
    values = {
        **series("blue", "i-1", up="1x5 0x200", requests="0+50x200"),
        **series("blue", "i-2", up="1x200", requests="0+50x200"),
    }
    report = firing(sandbox, "StorageInstanceDown", values, at="3m")
    assert "i-1" in report
    assert "i-2" not in report
    assert firing(sandbox, "StorageInstanceDown", values, at="20s") == ""


def test_a_machine_that_boots_is_down_after_a_quarter_of_an_hour(sandbox: Sandbox) -> None:
    values = {
        **series("blue", "i-1", up="0x60 1x200", requests="0x260"),  # it was launched, and answers after five minutes
        **series("blue", "i-2", up="0x260", requests="0x260"),
        **series("blue", "i-3", up="1x260", requests="0x260"),
    }
    assert firing(sandbox, "StorageInstanceDown", values, at="4m") == ""
    assert firing(sandbox, "StorageInstanceDown", values, at="14m") == ""
    report = firing(sandbox, "StorageInstanceDown", values, at="17m")
    assert "i-2" in report
    assert "i-1" not in report
