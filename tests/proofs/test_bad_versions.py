"""The catalogue of bad versions, and how the end of a deployment is read."""

from __future__ import annotations

import pytest

from proofs.judged import Judgement
from proofs.versions import Found
from tests.support.bad_versions import BAD_VERSIONS, SAID, gate_of
from tests.support.faulty.launch import FAULTS

GOOD = {"good", "slow-start", "one-error"}
ALSO_ELSEWHERE = {"slow", "crashing"}  # of tests/stack


def test_every_fault_is_in_the_catalogue_once_and_names_what_should_find_it() -> None:
    listed = [version.fault for version in BAD_VERSIONS]
    assert len(listed) == len(set(listed)) >= 30
    assert set(listed) == FAULTS.keys() - GOOD - ALSO_ELSEWHERE
    assert all(set(version.found_by) <= SAID.keys() for version in BAD_VERSIONS)


@pytest.mark.parametrize(
    ("status", "said", "hurt", "problem"),
    [
        ("refused", "v0.1.1 failed its pre-deployment tests, nothing changed: a 404", 0, ""),
        ("promoted", "", 0, "promoted"),
        ("undecided", "undecided after 300 s", 0, "undecided"),
        ("rolled-back", "rolled back: 9 probes failed: not stored", 0, "found by probes, not by trial"),
        ("refused", "v0.1.1 failed its pre-deployment tests", 9, "9.0% of the requests hurt, the version had 0%"),
    ],
)
def test_a_bad_version_is_judged_by_its_end(status: str, said: str, hurt: int, problem: str) -> None:
    version = next(each for each in BAD_VERSIONS if each.fault == "never-stored")
    end = Judgement(status=status, said=said, seconds=1.0, hurt=hurt, requests=100)
    assert Found(version=version, judgement=end).problem == problem


def test_a_message_without_a_gate_names_none() -> None:
    assert gate_of("interrupted") == ""
