"""A reader of stdout that closes it early, such as `head -1`: no traceback, and the exit code of other commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from observatory import operations
from observatory.cli import main
from observatory.errors import FAILED, OUTPUT_CLOSED, WRONG_USAGE

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> tuple[int, str]:
    """Run the command with a stdout that its reader has closed; return the exit code and stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "observatory", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("--help",), ("up", "--help"), ("release", "list"), ("release", "list", "--output", "json")],
)
def test_a_command_whose_output_nobody_reads_ends_as_if_by_sigpipe(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == (OUTPUT_CLOSED, "")


def test_an_error_keeps_its_exit_code_and_message() -> None:
    code, message = run("verify", "--timeout", "nan", "--output", "json")
    assert code == WRONG_USAGE
    assert "--timeout" in message
    assert "Traceback" not in message


def test_a_broken_pipe_that_is_not_the_output_has_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            os.write(writing, b"x")
        finally:
            os.close(writing)

    monkeypatch.setattr(operations, "open_workspace", broken)
    monkeypatch.setattr(sys, "argv", ["observatory", "status"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == FAILED
    assert "the other end of a pipe or connection was closed: [Errno 32] Broken pipe" in capsys.readouterr().err
