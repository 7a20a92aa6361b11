"""Every command and option of `observatory` that a page, a runbook, an alert, a help or an error names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from observatory.cli import load_commands
from observatory.cli.app import app

ROOT = Path(__file__).parents[2]
load_commands()
COMMAND: Any = typer.main.get_command(app)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    # Decisions and measurements keep the commands of their time.
    *(page for page in (ROOT / "docs").rglob("*.md") if "adr" not in page.parts and "benchmarks" not in page.name),
]
MODULES = [
    module
    for name in ("observatory", "components", "monitoring", "scripts")
    for module in sorted((ROOT / name).rglob("*.py"))
]
SPAN = re.compile(r"`([^`]+)`", re.DOTALL)
CALL = re.compile(r"(?:^|(?<=\s)|(?<=bin/))observatory +(?P<words>.+)", re.DOTALL)
CONSOLE = re.compile(r"^\s*\$ (?P<line>.*)$", re.MULTILINE)
END = re.compile(r"^(?:#.*|&&|\|\||\||;|>.*|<.*|--|\(.*)$")  # of a command line, or of what this program reads of it
WORD = re.compile(r"[a-z][a-z0-9-]*")
VALUE = "X"  # in the place of what a program inserts


def called(text: str) -> Iterator[list[str]]:
    """Yield the words after `observatory` of a command line."""
    if found := CALL.match(text) or CALL.search(text):
        yield found["words"].replace("\\|", "|").replace("[", " ").replace("]", " ").split()


def problems(words: list[str]) -> Iterator[str]:
    """Yield the words that are no subcommand, option or choice of the command that they call."""
    command, options, awaited = COMMAND, options_of(COMMAND), None
    for raw in words:
        if END.match(raw) or (command is COMMAND and raw == VALUE):
            return
        word = raw.rstrip(".,:;)…")
        if awaited is not None:
            choices, awaited = awaited, None
            yield from (
                f"{each} is none of {', '.join(choices)}"
                for each in word.split("|")
                if choices and WORD.fullmatch(each) and each not in choices
            )
        elif word.startswith("-"):
            for each in word.split("/"):
                name, _, value = each.partition("=")
                if name not in options:
                    yield f"{name} is no option"
                elif not value:
                    awaited = options[name]
        elif hasattr(command, "commands") and WORD.fullmatch(word):
            if word not in command.commands:
                yield f"{word} is no command"
                return
            command = command.commands[word]
            options = options | options_of(command)
        else:
            command = None  # its arguments follow
        if raw != word or ")" in word:
            return  # the end of a sentence, or of a command inside a line


def options_of(command: Any) -> dict[str, tuple[str, ...] | None]:
    """Return the options of a command: with the choices of those that take a value, None for flags."""
    found: dict[str, tuple[str, ...] | None] = {"--help": None, "-h": None}
    for each in command.params:
        annotation = each.type_descriptor.annotation
        types = (annotation, *get_args(annotation))
        kinds: list[Any] = [kind for kind in types if isinstance(kind, EnumType)]
        choices = [str(choice.value) for kind in kinds for choice in kind]
        is_flag = getattr(each, "is_flag", False) or bool in types
        found |= dict.fromkeys((*each.opts, *each.secondary_opts), None if is_flag else tuple(choices))
    return found


def of_page(text: str) -> Iterator[list[str]]:
    """Yield the calls in the code spans and the console lines of a page."""
    for block in re.split(r"^```.*$", text, flags=re.MULTILINE)[::2]:
        for span in SPAN.findall(block):
            if span.startswith("observatory "):
                yield from called(span)
    for line in CONSOLE.findall(text):
        yield from called(line)


def of_module(text: str) -> Iterator[list[str]]:
    """Yield the calls in the strings of a module: in backticks, and strings that are a call."""
    for node in ast.walk(ast.parse(text)):
        for string in strings(node):
            for span in SPAN.findall(string):
                if span.startswith("observatory "):
                    yield from called(span)
            if string.startswith("observatory "):
                yield from called(string)


def strings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)


def wrong(path: Path, calls: Iterator[list[str]]) -> list[str]:
    where = path.relative_to(ROOT)
    return [f"{where}: observatory {' '.join(words)}: {each}" for words in calls for each in problems(words)]


def test_pages_and_runbooks_name_existing_commands() -> None:
    assert [each for page in PAGES for each in wrong(page, of_page(page.read_text(encoding="utf-8")))] == []


def test_errors_help_and_alerts_name_existing_commands() -> None:
    assert [each for module in MODULES for each in wrong(module, of_module(module.read_text(encoding="utf-8")))] == []


def test_the_page_of_commands_has_existing_ones_only() -> None:
    page = ROOT / "docs/commands.md"
    first_cells = re.findall(r"^\| (`.*?`) \|", page.read_text(encoding="utf-8").replace("\\|", "¦"), re.MULTILINE)
    rows = [SPAN.findall(cell)[0].replace("¦", "\\|") for cell in first_cells]
    assert len(rows) > 20
    assert [each for row in rows for each in wrong(page, called(f"observatory {row}"))] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("observatory restore LABEL", "restore is no command"),
        ("observatory backup mend", "mend is no command"),
        ("observatory up --fast", "--fast is no option"),
        ("$ .venv/bin/observatory backup create --type full\\|half", "half is none of"),
    ],
)
def test_what_does_not_exist_is_found(line: str, found: str) -> None:
    assert [found in each for words in called(line) for each in problems(words)] == [True]


@pytest.mark.parametrize(
    "line",
    [
        "observatory exec patroni -- patronictl --nothing",
        "observatory logs haproxy -f | grep --color x",
        "observatory deploy application --version v1 --strategy=canary",
        "observatory up, then preview",
    ],
)
def test_arguments_other_programs_and_the_end_of_a_sentence_are_left_alone(line: str) -> None:
    assert [each for words in called(line) for each in problems(words)] == []
