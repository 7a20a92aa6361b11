"""`observatory exec` passes the command without the separator."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from observatory import operations
from observatory.cli import load_commands
from observatory.cli.app import app

load_commands()


@pytest.mark.parametrize("words", [("--", "true", "--", "-x"), ("true", "--", "-x")])
def test_exec_passes_the_command_without_the_separator(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[object] = []

    def run_beside(*arguments: object) -> int:
        passed.append(arguments)
        return 7

    monkeypatch.setattr(operations, "open_workspace", lambda _environment: None)
    monkeypatch.setattr(operations, "run_beside", run_beside)
    assert CliRunner().invoke(app, ["exec", "patroni", *words]).exit_code == 7
    assert passed == [(None, "patroni", ("true", "--", "-x"))]


def test_exec_without_a_command_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["exec", "patroni", "--"])
    assert (result.exit_code, "name a command after --" in result.output) == (2, True)
