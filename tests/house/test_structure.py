"""The rules of the house that no linter checks: sizes of functions and classes, loose modules, one base of errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("__main__.py", "observatory", "components", "monitoring", "service", "benchmarks", "proofs", "scripts")
FUNCTION_LINES, CLASS_LINES, CLASS_METHODS, LOOSE_MODULES = 60, 250, 20, 5
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _files() -> Iterator[Path]:
    for tree in TREES:
        yield from [ROOT / tree] if tree.endswith(".py") else sorted((ROOT / tree).rglob("*.py"))


def _nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for file in _files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield f"{file.relative_to(ROOT)}:{node.name}", node  # type: ignore[attr-defined]


def _lines(node: ast.AST) -> int:
    return (node.end_lineno or 0) - node.lineno + 1  # type: ignore[attr-defined,no-any-return]


def test_no_function_is_longer_than_a_screen() -> None:
    assert [place for place, node in _nodes(*FUNCTIONS) if _lines(node) > FUNCTION_LINES] == []


def test_no_class_is_too_large() -> None:
    found = []
    for place, node in _nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        methods = sum(isinstance(child, FUNCTIONS) for child in node.body)
        if _lines(node) > CLASS_LINES or methods > CLASS_METHODS:
            found.append(f"{place}: {_lines(node)} lines, {methods} methods")
    assert found == []


def test_the_library_has_packages_and_few_modules() -> None:
    loose = {file.name for file in (ROOT / "observatory").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(loose) <= LOOSE_MODULES, loose


@pytest.mark.parametrize("tree", ["observatory"])
def test_errors_have_one_base(tree: str) -> None:
    bases = ("Exception", "RuntimeError", "ValueError", "OSError")
    found = [
        place
        for place, node in _nodes(ast.ClassDef)
        if place.startswith(f"{tree}/")
        and isinstance(node, ast.ClassDef)
        and place != "observatory/errors.py:ObservatoryError"
        and any(isinstance(base, ast.Name) and base.id in bases for base in node.bases)
    ]
    assert found == []
