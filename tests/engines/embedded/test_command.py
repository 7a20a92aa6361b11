"""The engine as a command: `python -m observatory.engines.embedded`."""

from __future__ import annotations

import json
import re

import pytest

from observatory.engines.embedded.__main__ import main
from tests.engines.embedded.lab import TIMEOUT_S, Lab


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PULUMI_BACKEND_URL": "s3://bucket"}, "s3://bucket"),
        ({"PULUMI_BACKEND_URL": "file:///nowhere"}, "no passphrase"),
        ({"PULUMI_BACKEND_URL": "file:///x", "PULUMI_CONFIG_PASSPHRASE_FILE": "/nonexistent"}, "nonexistent"),
    ],
)
def test_an_invalid_environment_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name in ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["preview", "--stack", "dev"]) == 1
    assert re.search(message, capfd.readouterr().err)


def test_a_programs_output_is_not_in_the_json_document(lab: Lab) -> None:
    lab.program('import subprocess\nprint("noise")\nsubprocess.run(["echo", "more noise"])\npulumi.export("x", 1)')
    run = lab.start("preview")
    output, _ = run.communicate(timeout=TIMEOUT_S)
    assert json.loads(output)["outputs"] == {"x": 1}
