"""The steps at which restores are killed, and what a writer has acknowledged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from observatory.backups.rollback.record import Phase
from observatory.progress import Phase as Reported
from observatory.progress import Progress
from proofs import acknowledged
from proofs.acknowledged import Acknowledged
from proofs.killed_restores.cases import OF_ROLLBACK, OF_UNDO, cases
from proofs.killed_restores.victim import Moment
from tests.support.steps import Blow, Striker, step_of


def test_every_phase_of_an_exchange_is_killed_and_each_case_has_a_name_of_its_own() -> None:
    for moments in (OF_ROLLBACK, OF_UNDO):
        assert {f"^record {phase}$" for phase in Phase} <= {each.step for each in moments}
    names = [each.name for each in cases(0)]
    assert len(set(names)) == len(names)


def test_a_record_a_program_and_a_file_are_steps_and_other_events_are_none(tmp_path: Path) -> None:
    partial = tmp_path / ".1.json.partial"
    partial.write_text('{"phase": "start the database"}')
    record = step_of("os.rename", (str(partial), "/home/rollbacks/1.json", -1, -1))
    assert record == "record start the database"
    argv = ["/usr/bin/bwrap", "--chdir", "/srv", "/usr/lib/postgresql/17/bin/pg_ctl", "promote", "-D", "/srv/data"]
    assert step_of("subprocess.Popen", (argv[0], argv, None, None)) == "run pg_ctl promote"
    assert step_of("os.rename", ("/a/restore", "/a/data/postgres-next-1")) == "rename data/postgres-next-1"
    assert step_of("open", ("/lock/restored-x.kept", None, os.O_CREAT | os.O_WRONLY)) == "open lock/restored-x.kept"
    assert step_of("open", ("/etc/hosts", "r", 0)) == ""
    assert step_of("open", (3, "r", 0)) == ""
    assert step_of("os.listdir", (".",)) == ""


@pytest.mark.parametrize("after", [False, True])
def test_the_blow_falls_before_the_step_or_when_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    fallen: list[str] = []
    current = ""
    striker = Striker(Blow(step="^started two", after=after, struck=str(tmp_path / "struck")))
    monkeypatch.setattr(Striker, "strike", lambda _striker: fallen.append(current))
    for current in ("one", "two", "three"):
        striker.on_progress(Progress(task=current, phase=Reported.STARTED))
        if fallen:
            break
    assert fallen == ["three" if after else "two"]
    assert (tmp_path / "struck").read_text() == "started two"


def test_the_steps_of_all_moments_are_regular_expressions() -> None:
    for each in (*OF_ROLLBACK, *OF_UNDO):
        assert isinstance(each, Moment)
        re.compile(each.step)


@pytest.mark.parametrize(
    ("found", "restored", "wrong"),
    [
        ({"a", "mark", "new"}, False, []),
        ({"a", "then"}, True, []),
        ({"a", "mark", "new", "sent"}, False, []),
        ({"a", "mark"}, False, ["1 acknowledged rows are lost, such as new"]),
        ({"a", "then", "new"}, True, ["1 rows are there that it never had, such as new"]),
        ({"a", "then"}, False, ["the database is that of the moment"]),
    ],
)
def test_what_must_be_there_is_decided_by_the_mark(
    monkeypatch: pytest.MonkeyPatch, found: set[str], restored: bool, wrong: list[str]
) -> None:
    @contextmanager
    def connected(_conninfo: str, **_options: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(acknowledged, "connect", connected)
    monkeypatch.setattr(acknowledged, "ids", lambda _connection: found)
    rows = Acknowledged("", base={"a"}, mark="mark", rows={True: {"new"}, False: {"then"}}, unknown={"sent"})
    assert list(rows.wrong(restored=restored)) == wrong
