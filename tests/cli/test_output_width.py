"""Without a terminal nothing is folded; on one, lines fold between words only."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console, Group
from rich.text import Text

from observatory.cli.terminal import fitted, print_error, print_result, table

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


BACKUPS = ("label", "type", "finished (UTC)", "duration", "database", "stored", "based on", "restorable to now")
BACKUP = ("20261128-173235F", "full", "2026-11-28 17:32:36", "1 s", "33.0 MiB", "3.8 MiB", "-", "no: a gap")


@pytest.mark.parametrize("width", range(20, 110, 10))
def test_a_narrow_terminal_cuts_no_column_off(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_result(Group(table("Backups", BACKUPS, [BACKUP]), table("Jobs", ("job", "text"), [("a", "b " * 30)])))
    words = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).split()
    for cell in (*BACKUPS, *BACKUP):
        assert set(cell.split()) <= set(words)


def test_a_watched_view_is_folded_and_never_cut() -> None:
    console = Console(width=40, height=12, file=io.StringIO(), force_terminal=True)
    rows = [(f"daemon-{number}", "running", f"a-long-identifier-of-{number}") for number in range(3)]
    view = fitted(table("Daemons", ("daemon", "state", "what is measured there"), rows), console)
    lines = view.plain.splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) <= 12
    assert {word for row in rows for cell in row for word in cell.split()} <= set(view.plain.split())
    tall = fitted(table("All", ("row",), [(str(number),) for number in range(100)]), console).plain.splitlines()
    assert len(tall) == 12
    assert tall[-1] == "91 more lines: enlarge the terminal"
