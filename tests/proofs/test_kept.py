"""Single results of a proof that is interrupted and continued."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from proofs import judged
from proofs.judged import Judged, Judgement, on_stacks
from proofs.kept import Kept
from proofs.record import Outcome


def test_a_resumed_proof_has_the_finished_cases_and_a_new_one_none(tmp_path: Path) -> None:
    file = tmp_path / "proofs/versions.jsonl"
    Kept(file=file).add("one 0", {"status": "refused"})

    resumed = Kept(file=file, resume=True)
    assert resumed.find("one 0") == {"status": "refused"}
    assert resumed.find("two 0") is None
    assert len(resumed.commits) == 1
    assert Kept(file=file).find("one 0") is None


class _Stack:
    def restore(self) -> None: ...


@contextlib.contextmanager
def _a_stack() -> Iterator[Judged]:
    yield cast("Judged", _Stack())


def test_only_cases_without_a_result_are_deployed_and_a_broken_one_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "a_stack", _a_stack)
    file, deployed = tmp_path / "kept.jsonl", list[str]()

    def deploy(_stack: Judged, case: str) -> Judgement:
        deployed.append(case)
        if case == "b" and deployed.count("b") == 1:
            raise RuntimeError("the stack broke")
        return Judgement(status=case, said="", seconds=1.5, gates=("probes",))

    cases = [(f"{case} 0", case) for case in "abc"]
    first = Outcome(promise="it holds")
    list(on_stacks(cases, deploy, first, Kept(file=file)))
    ends = dict(on_stacks(cases, deploy, Outcome(promise="it holds"), Kept(file=file, resume=True)))

    assert first.failed == 1
    assert deployed == ["a", "b", "c", "b"]
    assert ends["a"] == Judgement(status="a", said="", seconds=1.5, gates=("probes",))
    assert set(ends) == {"a", "b", "c"}
