"""Configuration from Pulumi.yaml and the stack's file."""

from __future__ import annotations

import pytest

from observatory.engines import embedded as engine
from tests.engines.embedded.conftest import MakeLab
from tests.engines.embedded.lab import STACK, Lab

PROGRAM = """
config = pulumi.Config()
pulumi.export("size", config.require_int("size"))
pulumi.export("flag", config.require_bool("flag"))
pulumi.export("ratio", config.require_float("ratio"))
pulumi.export("shape", config.require_object("shape"))
pulumi.export("where", [pulumi.get_project(), pulumi.get_stack(), pulumi.get_organization()])
"""
VALUES = "config:\n  lab:size: 3\n  lab:flag: true\n  lab:ratio: 0.5\n  lab:shape: {name: box, sides: [1, 2]}\n"


def test_values_reach_the_program(make_lab: MakeLab) -> None:
    lab = make_lab(VALUES)
    lab.program(PROGRAM)
    assert lab.embedded("up").outputs == {
        "size": 3,
        "flag": True,
        "ratio": 0.5,
        "shape": {"name": "box", "sides": [1, 2]},
        "where": ["lab", "dev", "organization"],
    }


@pytest.mark.cli
def test_both_engines_pass_the_same_configuration(make_lab: MakeLab) -> None:
    ours, theirs = make_lab(VALUES), make_lab(VALUES)
    body = (
        PROGRAM + 'pulumi.export("pin", config.require_secret("pin"))\nThing("a", pin=config.require_secret("pin"))\n'
    )
    for lab in (ours, theirs):
        lab.program(body)
        lab.pulumi("stack", "init", STACK)
        lab.pulumi("config", "set", "--secret", "pin", "1234")
        lab.pulumi("config", "set", "--secret", "--path", "shape.inner", "deep")
    mine, its = ours.embedded("up"), theirs.cli("up")
    assert mine.outputs == its.outputs
    assert mine.outputs["pin"] == "1234"
    assert mine.state == its.state
    assert ours.cli("preview").steps == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: lab\n", "runtime"), ("runtime: python\n", "name"), ("name: [", "cannot read"), ("- 1\n", "mapping")],
)
def test_an_invalid_project_file_is_named(lab: Lab, text: str, message: str) -> None:
    (lab.project / "Pulumi.yaml").write_text(text)
    with pytest.raises(engine.ConfigError, match=message) as caught:
        engine.preview(lab.options)
    assert "Pulumi.yaml" in str(caught.value)


def test_a_directory_without_a_project_is_named_with_what_to_do(lab: Lab) -> None:
    (lab.project / "Pulumi.yaml").unlink()
    with pytest.raises(engine.ConfigError) as caught:
        engine.preview(lab.options)
    assert str(caught.value) == (
        f"{lab.project / 'Pulumi.yaml'} does not exist; run the command in the project's directory, or restore the "
        "file from version control"
    )
