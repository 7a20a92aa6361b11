"""Every link of a page leads to a file and a heading that exist, and no example puts a secret where git records it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = "benchmarks/"  # of pages in docs, where their links are checked
BLOCK = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
SCHEME = re.compile(r"[a-z]+:")
HEADING = re.compile(r"^#+ (?P<text>.*)$", re.MULTILINE)
SECRET = re.compile(r"\b(?:webhook|routing_key|url|password)_file: (?P<file>[\w./-]+)")


def pages() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split() if not name.startswith(TEMPLATES) and (ROOT / name).is_file()]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    texts = (found["text"] for found in HEADING.finditer(BLOCK.sub("", page.read_text(encoding="utf-8"))))
    return frozenset(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in texts)


def broken(page: Path, text: str) -> Iterator[str]:
    """Yield the links of a page that lead nowhere; addresses outside of the repository are not checked."""
    for found in LINK.finditer(BLOCK.sub("", text)):
        name, _, anchor = found["target"].partition("#")
        target = page.parent / name if name else page
        missing = not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target))
        if not SCHEME.match(found["target"]) and missing:
            yield found["target"]


@pytest.mark.parametrize("name", pages())
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "[a](nowhere.md) [b](alerts.md#nowhere) [c](alerting.md#routes) [d](https://x.example/#y)\n"
    assert list(broken(ROOT / "docs/alerts.md", text)) == ["nowhere.md", "alerts.md#nowhere"]


def test_git_ignores_the_secrets_of_examples() -> None:
    examples = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files = {found["file"] for page in examples for found in SECRET.finditer(page.read_text(encoding="utf-8"))}
    assert files
    ignored = subprocess.run(
        ["git", "check-ignore", *sorted(files)], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert files == set(ignored)
