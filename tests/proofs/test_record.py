"""The document that proofs write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proofs import __main__ as command
from proofs.record import Outcome, record


def test_a_proof_replaces_its_own_entry_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "proofs.json"
    record("first", 3, Outcome(promise="it holds", passed=7), file=file)
    record("second", 1, Outcome(promise="it holds too", passed=1), file=file)
    record("first", 5, Outcome(promise="it holds", passed=8, failed=1, failures=["not so"]), file=file)
    document = json.loads(file.read_text())
    assert set(document) == {"first", "second"}
    assert (document["first"]["rounds"], document["first"]["failed"]) == (5, 1)
    assert {"commit", "machine", "when", "promise", "counts"} <= set(document["second"])


def test_an_unknown_proof_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["crush"])
    assert "there are crash" in capsys.readouterr().err
