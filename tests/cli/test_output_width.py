"""Without a terminal nothing is folded; on one, lines fold between words only."""

from __future__ import annotations

import sys

import pytest
from rich.text import Text

from observatory.cli.terminal import print_error, print_result, table

IDENTIFIER = "deployment-" + "0123456789abcdef" * 8
PATH = "/srv/" + "a-long-directory/" * 9 + "file.log"
ROWS = [(IDENTIFIER, PATH, "a text of several words " * 10), ("short", "/x", "y")]


def test_a_piped_table_has_one_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(table("Rows", ("id", "path", "details"), ROWS))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert IDENTIFIER in lines[2]
    assert PATH in lines[2]
    assert lines[3].split() == ["short", "/x", "y"]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [20, 80])
def test_a_terminal_never_folds_an_identifier_or_a_path(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_result(table("Rows", ("id", "path", "details"), ROWS))
    output = capsys.readouterr().out
    assert IDENTIFIER in output
    assert PATH in output


def test_a_piped_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(Text(f"{IDENTIFIER} {PATH} {IDENTIFIER}"))
    assert capsys.readouterr().out == f"{IDENTIFIER} {PATH} {IDENTIFIER}\n"


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"{PATH} is not readable " * 3)
    assert len(capsys.readouterr().err.splitlines()) == 1
