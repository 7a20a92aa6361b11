"""Wrong usage with `--output json`: one document on stdout that has the exit code of the command."""

from __future__ import annotations

import json
import sys

import pytest

from observatory.cli import main
from observatory.errors import WRONG_USAGE


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("status", "--frobnicate"), "No such option: --frobnicate"),
        (("rollback", "--yes"), "Missing option '--method'"),
        (("rollback", "--method", "database"), "'database' is not one of 'blue-green', 'application'"),
        (("rollback", "--method", "application"), "--method application needs --version"),
        (("silence", "add", "--reason", "r", "--duration", "soon"), "invalid duration 'soon'"),
        (("deploy", "database", "--retry", "-1"), "greater than or equal to 0"),
        (("verify", "--junit", "/dev/null/verify.xml"), "/dev/null is not a directory"),
    ],
)
@pytest.mark.parametrize("option", [("--output", "json"), ("--output=json",)])
def test_wrong_usage_is_one_document(
    arguments: tuple[str, ...],
    expected: str,
    option: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["observatory", *arguments, *option])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert end.value.code == document["exit_code"] == WRONG_USAGE
    assert expected in document["error"]["message"]
    assert printed.err.startswith("Usage: ")


def test_without_json_stdout_is_empty(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["observatory", "frobnicate"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().out) == (WRONG_USAGE, "")
