"""Wrong usage with `--output json`: one document on stdout that has the exit code of the command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from observatory import operations
from observatory.cli import main
from observatory.errors import FAILED, REFUSED, WRONG_USAGE

ROOT = Path(__file__).resolve().parents[2]
CANARY = ("deploy", "application", "--version", "v0.2.0", "--strategy", "canary")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("status", "--frobnicate"), "No such option: --frobnicate"),
        (("rollback", "--yes"), "Missing option '--method'"),
        (("backup", "create", "--type", "x"), "'--type': 'x' is not one of 'full'"),
        (("rollback", "--method", "x"), "'x' is not one of 'blue-green', 'application', 'database'"),
        (("rollback", "--method", "database"), "needs one of --to-time, --backup-file and --undo"),
        (("rollback", "--method", "database", "--backup-file", "x"), "neither the label of a backup nor a dump's file"),
        (("rollback", "--method", "blue-green", "--undo"), "need --method database"),
        (("rollback", "--method", "blue-green", "--repository", "2"), "need --method database"),
        (("rollback", "--method", "database", "--undo", "--repository", "2"), "does not take --repository"),
        (("rollback", "--method", "database", "--undo", "--force"), "does not take --version, --emergency and --force"),
        (("rollback", "--method", "application"), "--method application needs --version"),
        (("silence", "create", "--reason", "r", "--duration", "soon"), "invalid duration 'soon'"),
        (("deploy", "database", "--retry", "-1"), "expected at least 0"),
        ((*CANARY, "--canary-percentage", "500"), "expected at most 99"),
        ((*CANARY, "--canary-percentage", "x"), "expected a whole number (given: 'x')"),
        ((*CANARY, "--canary-percentage", "0"), "expected at least 1"),
        ((*CANARY, "--batch-size", "0"), "expected at least 1"),
        ((*CANARY, "--bake", "nan"), "expected at least 0"),
        ((*CANARY, "--health-check-timeout", "inf"), "inf is not a finite number"),
        ((*CANARY, "--approved-by", "mallory"), "the approver runs `observatory release approve VERSION --key FILE`"),
        (("release", "deploy", "v0.2.0", "--approved-by", "mallory"), "a name proves nothing"),
        (("release", "approve", "v0.2.0"), "Missing option '--key'"),
        (("release", "deploy", "v0.2.0", "--bake", "inf"), "inf is not a finite number"),
        (("verify", "--timeout", "nan"), "expected at least 1"),
        (("rotate-passwords", "--wait", "nan"), "expected at most 3600"),
        (("data", "sample", "--from", "x", "--fraction", "nan"), "nan is not a finite number"),
        (("logs", "haproxy", "--follow"), "--follow cannot be combined with --output json"),
        (("psql",), "--output json does not apply"),
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
    assert "should" not in document["error"]["message"]  # of the library that checks values
    assert "Value error" not in document["error"]["message"]
    assert printed.err.startswith("Usage: ")


def test_without_json_stdout_is_empty(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["observatory", "frobnicate"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().out) == (WRONG_USAGE, "")


def test_a_question_without_a_terminal_is_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["observatory", "down", "--output", "json"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(SystemExit) as end:
        main()
    document = json.loads(capsys.readouterr().out)
    assert end.value.code == document["exit_code"] == REFUSED
    assert "Add --yes" in document["error"]["message"]
    assert "and the backups in its home?" in document["error"]["message"]


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_terminal(closed: str) -> None:
    """A scheduler or a service may start the command without them."""
    command = f"exec {shlex.quote(sys.executable)} -m observatory down {closed}"
    ended = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == REFUSED, ended.stderr
    assert ("Add --yes" in ended.stderr) is ("2>&-" not in closed)


def test_an_unexpected_error_is_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(operations, "status", fail)
    monkeypatch.setattr(sys, "argv", ["observatory", "status", "--output", "json"])
    with pytest.raises(ZeroDivisionError):
        main()
    document = json.loads(capsys.readouterr().out)
    assert (document["exit_code"], document["error"]["kind"]) == (FAILED, "ZeroDivisionError")
    assert "a fault" in document["error"]["message"]
