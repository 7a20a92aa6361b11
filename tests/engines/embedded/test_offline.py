"""The offline plan: without state, plugins, credentials and passphrase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from observatory.engines import embedded as engine
from observatory.engines.embedded import DiagnosticEvent, Event, ProgramError, Result, StepFailed
from tests.engines.embedded.conftest import MakeLab
from tests.engines.embedded.lab import Lab

# pulumi_aws warns of its own deprecated modules while it is imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:pulumi_aws")]

NETWORK = """\
import pulumi_aws as aws

class Network(pulumi.ComponentResource):
    def __init__(self, name):
        super().__init__("lab:index:Network", name)
        own = Options(parent=self, provider=aws.Provider("there", region="eu-north-1"))
        vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16", opts=own)
        self.subnet = aws.ec2.Subnet("subnet", vpc_id=vpc.id, cidr_block="10.0.1.0/24", opts=own)
        self.register_outputs({})

network = Network("network")
pulumi.export("arn", network.subnet.arn)
pulumi.export("cidr", network.subnet.cidr_block)
"""
SECURE = "encryptionsalt: v1:AAAA:v1:BBBB:CCCC\nconfig:\n  lab:password:\n    secure: v1:AAAA:BBBB\n  lab:size: 3\n"


def plan(lab: Lab) -> tuple[Result, list[Event]]:
    """Plan with the program alone; even the backend's directory is missing."""
    lab.prepare()
    events: list[Event] = []
    options = replace(lab.options, backend=lab.home / "nowhere", passphrase="")
    result = engine.plan_offline(options, on_event=events.append)
    assert not (lab.home / "nowhere").exists()
    return result, events


def inputs(result: Result, name: str) -> dict[str, Any]:
    step = next(step for step in result.steps if step.name == name)
    return {change.path: change.new for change in step.changes}


@pytest.fixture(autouse=True)
def _environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_LAB", str(lab.home))


def test_resources_of_any_package_are_planned_with_their_inputs(lab: Lab) -> None:
    lab.program(NETWORK)
    result, _ = plan(lab)
    assert result.summary == {"create": 5}
    assert inputs(result, "subnet") == {"cidrBlock": "10.0.1.0/24", "vpcId": "[unknown]"}
    assert result.outputs == {"arn": "[unknown]", "cidr": "10.0.1.0/24"}


def test_a_provider_functions_result_is_unknown_with_a_warning(lab: Lab) -> None:
    lab.program(
        "import pulumi_aws as aws\n"
        "image = aws.ec2.get_ami_output(owners=['136693071363'], most_recent=True)\n"
        "aws.ec2.Instance('node', ami=image.id, instance_type='m7i.large')\n"
    )
    result, events = plan(lab)
    assert inputs(result, "node")["ami"] == "[unknown]"
    warnings = [event.message for event in events if isinstance(event, DiagnosticEvent) and event.severity == "warning"]
    assert len(warnings) == 1
    assert "aws:ec2/getAmi:getAmi" in warnings[0]


def test_a_program_that_needs_a_plain_result_fails_with_the_remedy(lab: Lab) -> None:
    lab.program("import pulumi_aws as aws\nprint(aws.get_caller_identity().account_id)\n")
    events: list[Event] = []
    with pytest.raises(ProgramError):
        engine.plan_offline(lab.options, on_event=events.append)
    assert any("getCallerIdentity" in event.message and "_output" in event.message for event in events)


def test_a_secret_in_the_configuration_is_secret_and_unknown(make_lab: MakeLab) -> None:
    lab = make_lab(SECURE)
    lab.program(
        "config = pulumi.Config()\nThing('a', key=config.require_secret('password'), size=config.require_int('size'))\n"
        "pulumi.export('password', config.require_secret('password'))\n"
    )
    result, _ = plan(lab)
    assert inputs(result, "a")["key"] == "[secret, unknown]"
    assert inputs(result, "a")["size"] == 3
    assert result.outputs == {"password": "[secret, unknown]"}


def test_the_state_is_not_read(lab: Lab) -> None:
    lab.program("Thing('a')\n")
    lab.embedded("up")
    before = lab.checkpoint.read_bytes()
    result = engine.plan_offline(replace(lab.options, passphrase="another"))
    assert result.summary == {"create": 2}
    assert lab.checkpoint.read_bytes() == before


def test_the_programs_own_providers_check_their_inputs(lab: Lab) -> None:
    lab.program("Thing('a', size='-1')\n")
    with pytest.raises(StepFailed, match="size: must not be negative"):
        plan(lab)
    assert '"create"' not in lab.log()
