"""Output that cannot be written: its reader has closed it, as `head -1` does, or its disk is full. No traceback."""

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


def run_on_full_disk(*arguments: str, unbuffered: str, code: int) -> str:
    """Run the command with a stdout that takes nothing, check the exit code, and return stderr without a traceback."""
    command, environment = (
        [sys.executable, "-m", "observatory", *arguments],
        {**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def unbuffered(request: pytest.FixtureRequest) -> str:
    """Python's switch: with it `print` fails, without it the flush at the end of the process."""
    return str(request.param)


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


def test_a_full_disk_hides_no_error(unbuffered: str) -> None:
    message = run_on_full_disk(
        "verify", "--timeout", "nan", "--output", "json", unbuffered=unbuffered, code=WRONG_USAGE
    )
    assert "--timeout" in message


def test_a_result_that_a_full_disk_does_not_take_is_a_failure(unbuffered: str) -> None:
    message = run_on_full_disk("release", "list", "--output", "json", unbuffered=unbuffered, code=FAILED)
    assert "No space left on device; free some disk" in message


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
