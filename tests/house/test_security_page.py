"""The page of security promises: each promise names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISE = re.compile(r"^\|(?! threat |.*--- )(?P<cells>.+)\|$", re.MULTILINE)
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+)`")


def promises() -> list[str]:
    """Return the rows of every table of promises on the page."""
    _, tables = (ROOT / "docs/security.md").read_text().split("## Clients of the service")
    return [found["cells"] for found in PROMISE.finditer(tables)]


@pytest.mark.parametrize("promise", promises())
def test_a_promise_names_a_test_that_exists(promise: str) -> None:
    named = list(TEST.finditer(promise))
    assert named, f"no test is named for: {promise}"
    for each in named:
        assert f"def {each['name']}(" in (ROOT / each["file"]).read_text(), each[0]
