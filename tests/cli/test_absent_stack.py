"""Every command that needs a stack refuses an absent one in the same words, with the same exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from observatory import operations
from observatory.cli import main
from observatory.errors import REFUSED, WRONG_USAGE
from tests.support.checkout import SOURCE

COMMANDS = [
    "status",
    "outputs",
    "outputs service_url",
    "verify",
    "verify --dry-run",
    "deploy database",
    "deploy database --dry-run",
    "deploy database --verify-only",
    "deploy application --version v0.2.0 --strategy canary",
    "deploy application --version v0.2.0 --strategy canary --dry-run",
    "release deploy v0.2.0",
    "rollback --method blue-green --yes",
    "rollback --method blue-green --dry-run",
    "rollback --method application --version v0.1.0 --emergency",
    "rollout pause",
    "rollout resume",
    "rollout promote",
    "rollout abort",
    "backup create",
    "backup list",
    "backup verify",
    "key create --name x",
    "key list",
    "key revoke x",
    "rotate-passwords",
    "certificates list",
    "certificates renew",
    "silence create --reason x --duration 1h --alert X",
    "silence list",
    "silence end x",
    "scheduler run backup-full",
    "scheduler rotate-logs",
    "logs haproxy",
    "psql",
    "exec patroni -- true",
]


FILES = {"Pulumi.yaml", "Pulumi.local.yaml", "migrations"}


def use_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands in a checkout whose stack was never up."""
    (root / "Pulumi.yaml").write_text((SOURCE / "Pulumi.yaml").read_text())
    (root / "Pulumi.local.yaml").write_text("config: {}\n")
    (root / "migrations").symlink_to(SOURCE / "migrations")
    workspace = operations.open_workspace("local", root)
    monkeypatch.setattr(operations, "open_workspace", lambda _: workspace)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["observatory", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(str(end.value.code))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_absent_stack(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_checkout(tmp_path, monkeypatch)
    code = run(command.split(), monkeypatch)
    assert capsys.readouterr().err.splitlines()[-1] == "error: the stack 'local' is not up: run `observatory up` first"
    assert code == REFUSED
    assert {path.name for path in tmp_path.iterdir()} == FILES  # nothing was written


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stack_without_settings(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.split()
    place = 1 if words[0] == "exec" else len(words)
    code = run([*words[:place], "-e", "nope", *words[place:]], monkeypatch)
    assert "no stack 'nope': Pulumi.nope.yaml does not exist" in capsys.readouterr().err
    assert code == WRONG_USAGE


def test_json_output_has_the_kind_of_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_checkout(tmp_path, monkeypatch)
    run(["status", "--output", "json"], monkeypatch)
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "StackNotUpError"
