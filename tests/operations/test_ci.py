"""The public library is complete: what it raises is exported; the program of docs/ci.md handles each outcome.

tests/stack/test_delivery.py runs that program against a stack.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from observatory import operations
from observatory.errors import ObservatoryError
from observatory.operations import (
    LockHeldError,
    NotPermittedError,
    Phase,
    Progress,
    RollbackFailedError,
    RolledBackError,
    StackNotUpError,
)
from tests.support.ci import program

BUILT_IN = {"KeyboardInterrupt", "FileNotFoundError", "OSError", "ValueError"}
NAMES = re.compile(r"\b(?:engine\.)?([A-Z]\w+(?:Error|Fault|Interrupt))\b")


def raised_names() -> set[str]:
    """Return the names of all errors in the section Raises of the public functions' docstrings."""
    public = (getattr(operations, name) for name in dir(operations))
    functions = [each for each in public if inspect.isfunction(each)]
    assert len(functions) > 40
    sections = [inspect.getdoc(each) or "" for each in functions]
    lines = [
        line.partition(":")[0]
        for text in sections
        for line in text.partition("Raises:")[2].splitlines()
        if line.startswith("    ") and not line.startswith("     ")
    ]
    return {name for line in lines for name in NAMES.findall(line)}


def test_every_documented_error_is_exported_with_its_exit_code() -> None:
    named = raised_names() - BUILT_IN
    assert len(named) > 20
    assert {name for name in named if not hasattr(operations, name)} == set()
    for name in named:
        error = getattr(operations, name)
        assert issubclass(error, ObservatoryError)
        assert error.exit_code in (1, 2, 3)


@pytest.fixture
def script(tmp_path: Path) -> ModuleType:
    return program(tmp_path)


class Plan:
    objections: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RolledBackError("rolled back: 5 % errors"), 1, "the previous version is active: rolled back: 5 % errors"),
        (RollbackFailedError("green has 5 %"), 1, "AN OPERATOR IS NEEDED: green has 5 %"),
        (NotPermittedError("no window is open"), 3, "not permitted now: no window is open"),
        (LockHeldError("held"), 3, "LockHeldError: held"),
        (StackNotUpError("staging"), 3, "StackNotUpError: the stack 'staging' is not up"),
    ],
)
def test_a_failure_ends_the_program_with_its_exit_code(
    script: Any,
    *,
    error: ObservatoryError,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(script, "plan_release", lambda *_, **__: Plan())
    monkeypatch.setattr(script, "deploy_release", fail)
    assert script.main("local", "v0.2.0") == code
    assert text in capsys.readouterr().out


def test_an_objection_ends_the_program_before_anything_changes(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Plan()
    refused.objections = ("the catalogue was not made",)
    monkeypatch.setattr(script, "plan_release", lambda *_, **__: refused)
    monkeypatch.setattr(script, "deploy_release", lambda *_, **__: pytest.fail("deployed"))
    assert script.main("local", "v0.2.0") == 3
    assert "objection: the catalogue was not made" in capsys.readouterr().out


def test_a_failed_gate_is_not_shown_as_done(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for phase in Phase:
        script.show(Progress(task="gate", phase=phase))
    assert capsys.readouterr().out.splitlines() == ["done: gate", "failed: gate", "warned: gate", "unknown: gate"]
