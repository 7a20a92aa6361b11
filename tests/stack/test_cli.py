"""The same stack with a plain `pulumi`: one state, two engines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.checkout import UP_TIMEOUT_S, Checkout

pytestmark = pytest.mark.cli
CLI = ("--engine", "cli")


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
        timeout=UP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_plain_pulumi_brings_up_what_the_embedded_engine_finds_unchanged(checkout: Checkout) -> None:
    checkout.run("bootstrap")
    pulumi(checkout, "up", "--yes", "--skip-preview")
    assert checkout.well_status()["healthy"]
    assert set(checkout.json("up", "--engine", "embedded")["summary"]) == {"same"}
    pulumi(checkout, "preview", "--expect-no-changes")
    before = checkout.json("backup", "list")
    pulumi(checkout, "destroy", "--yes", "--skip-preview")
    assert checkout.processes() == set()
    assert checkout.json("backup", "list") == before
    checkout.run("up", "--engine", "embedded")
    assert checkout.json("backup", "list")[: len(before)] == before
    checkout.run("backup", "create")


def test_the_command_uses_the_cli_on_path_and_finds_nothing_to_change(checkout: Checkout) -> None:
    checkout.run("up", "--engine", "embedded")
    configuration = checkout.root / "Pulumi.local.yaml"
    before = configuration.read_text()
    for operation in ("preview", "up"):
        done = checkout.json(operation)
        assert done["engine"] == "cli"
        assert set(done["summary"]) == {"same"}
    assert checkout.output("api_key").startswith("obs_")
    assert configuration.read_text() == before
    checkout.run("down", "--yes")
    assert checkout.processes() == set()


def workers(checkout: Checkout) -> dict[int, str]:
    """Return the processes that work in the checkout, by what they run; no daemons: those stay on purpose."""
    found = {}
    for pid in checkout.processes():
        try:
            if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(checkout.root):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return {
        pid: command
        for pid, command in found.items()
        if not re.search(r"supervisord|bwrap|observatory scheduler|observatory.(scheduling|console)", command)
    }


def start_up(checkout: Checkout, until: str) -> subprocess.Popen[str]:
    """Start `up` by the CLI, and return once it has begun the step."""
    process = checkout.start("up", *CLI)
    assert process.stderr
    output = []
    for line in process.stderr:
        output.append(line)
        if until in line:
            return process
    raise AssertionError("".join(output))


def test_an_interrupted_cli_up_finishes_its_step_and_leaves_no_process(checkout: Checkout) -> None:
    process = start_up(checkout, "create Daemon patroni")
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=UP_TIMEOUT_S)[1]
    assert process.returncode == 130, output
    assert "interrupted by SIGTERM" in output
    assert "Exception" not in output
    assert "Warning" not in output
    assert workers(checkout) == {}
    assert "encryptionsalt" not in (checkout.root / "Pulumi.local.yaml").read_text()
    assert checkout.json("up", *CLI)["status"]["healthy"]


def test_a_killed_up_is_continued_by_the_next(checkout: Checkout) -> None:
    process = start_up(checkout, "create Daemon patroni")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while any(command.startswith("pulumi ") for command in workers(checkout).values()):
        time.sleep(0.02)  # it dies with its parent, a moment later
    assert workers(checkout) != {}, "the plugins are left"
    assert checkout.json("up", *CLI)["status"]["healthy"]
    assert workers(checkout) == {}
    assert "encryptionsalt" not in (checkout.root / "Pulumi.local.yaml").read_text()
