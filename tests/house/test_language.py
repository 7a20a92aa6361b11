"""The words of the house: phrases that a reader stumbles over appear in no tracked text."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    r"\bheeded?\b": "an ignored signal is ignored, others are handled",
    r"\bwhoever\b": "name the role: the operator, the caller",
    r"\bsomebody\b": "name the role, or: another user, another process",
    r"\bby turns\b": "in batches, alternately",
    r"\bbecame of\b|\bbecomes of\b": "result",
    r"\bin the way that\b": "the way",
    r"\bwho serves\b|\bthe serving\b": "the active fleet",
    r"\b(?:is|are|was|were|be|been) told\b": "gets, receives, reads",
    r"\btak(?:es?|en) (?:it )?back\b": "roll back, undo",
    r"\bg(?:ives?|ave) (?:the )?traffic back\b": "returns traffic to the previous fleet",
    r"\bgoes on where\b": "continues where",
    r"\bwithout a word\b": "silently",
    r"\bwho are you\b": "invalid or missing token",
    r"\bis no number\b": "is NaN",
}
EXEMPT = ("tests/house/test_language.py", "tests/upgrades/", "requirements/", "service/requirements.txt", "LICENSE")
SUFFIXES = {".py", ".pyi", ".md", ".sh", ".toml", ".yaml", ".j2", ""}


@pytest.mark.parametrize("phrase", PLAIN)
def test_a_phrase_is_replaced_by_plain_words(phrase: str) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in listed
        if not name.startswith(EXEMPT) and Path(name).suffix in SUFFIXES and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if re.search(phrase, line, re.IGNORECASE)
    ]
    assert not found, f"better: {PLAIN[phrase]}\n" + "\n".join(found)
