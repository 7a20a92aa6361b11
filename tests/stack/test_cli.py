"""The same stack with a plain `pulumi`: one state, two engines."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.checkout import Checkout

pytestmark = pytest.mark.cli


def pulumi(checkout: Checkout, *arguments: str) -> str:
    """Run a plain `pulumi` with nothing but what `observatory env` prints."""
    lines = checkout.run("env").stdout.splitlines()
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    done = subprocess.run(
        ["pulumi", *arguments, "--stack", "local", "--non-interactive", "--color", "never"],
        cwd=checkout.root,
        env={**os.environ, **checkout.environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_plain_pulumi_brings_up_what_the_embedded_engine_finds_unchanged(checkout: Checkout) -> None:
    checkout.run("bootstrap")
    pulumi(checkout, "up", "--yes", "--skip-preview")
    assert checkout.json("status")["healthy"]
    assert set(checkout.json("up", "--engine", "embedded")["summary"]) == {"same"}
    pulumi(checkout, "preview", "--expect-no-changes")
    pulumi(checkout, "destroy", "--yes", "--skip-preview")
    assert checkout.processes() == set()


def test_the_command_runs_the_cli_where_it_finds_one(checkout: Checkout) -> None:
    up = checkout.json("up")
    assert up["engine"] == "cli"
    assert up["status"]["healthy"]
    assert checkout.output("api_key").startswith("obs_")
    assert (checkout.root / "Pulumi.local.yaml").read_text().count("encryptionsalt") == 0
    checkout.run("down", "--yes")
    assert checkout.processes() == set()
