"""The help: short, whole at 80 columns, every command in a group."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from observatory.cli import COMMANDS, load_commands, main
from observatory.cli.app import GROUPS, app

load_commands()
COMMAND: Any = typer.main.get_command(app)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with its path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = dict(commands(COMMAND))
PYTHON_TYPES = re.compile(r"<(str|int|float|bool|path|file|directory)\b|list\[|\{\w+\}")


@pytest.mark.parametrize("path", ALL, ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_no_name_is_cut_off_and_no_line_is_wide(
    path: tuple[str, ...], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["observatory", *path, option])
    with pytest.raises(SystemExit) as end:
        main()
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for parameter in (each for each in ALL[path].params if not getattr(each, "hidden", False)):
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert name in text or name.upper() in text  # arguments are in capitals
    assert not PYTHON_TYPES.search(text)


@pytest.mark.parametrize("name", COMMAND.commands)
def test_a_command_line_imports_the_modules_of_its_command(name: str) -> None:
    below = [each for path, each in ALL.items() if path[:1] == (name,) and each.callback]
    assert {each.callback.__module__ for each in below} == {f"observatory.cli.{module}" for module in COMMANDS[name]}


def test_every_command_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(COMMAND.commands)


def test_the_summary_of_each_command_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["observatory", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    for title, names in GROUPS.items():
        assert f"\n{title}:\n" in text
        for name in names:
            assert f"  {name.ljust(16)}  " in text
    assert "..." not in text.replace("[ARGS]...", "")


def test_a_completion_script_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["observatory", "--show-completion", "bash"])
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "_OBSERVATORY_COMPLETE" in capsys.readouterr().out
