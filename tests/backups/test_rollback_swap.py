"""The exchange of the data directory: killed before any step it loses nothing, and is finished or given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from observatory.backups.rollback import swap as module
from observatory.backups.rollback.errors import DatabaseRollbackError, RollbackRefusedError
from observatory.backups.rollback.record import Phase, RollbackRecord, RollbackRecords
from observatory.backups.rollback.swap import Swap
from observatory.backups.rollback.timelines import Control, DataDirectory
from observatory.database.roles.kept_access import KeptAccess
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings

ACCESS = KeptAccess(roles=[], memberships=[], privileges=[], keys=[])
PHASES = [phase for phase in Phase if phase not in {Phase.UP, Phase.DONE}]
NUMBERS = count(1)
Kind = Literal["rollback", "undo"]


class Killed(BaseException):
    """Stands for SIGKILL: no code of the exchange handles it."""


@dataclass
class Machine:
    """A home with data directories, and the daemons that the exchange stops and starts."""

    home: Path
    running: bool = True
    paused: bool = False
    applied: list[KeptAccess] = field(default_factory=list)
    timeline: int = 3

    def __post_init__(self) -> None:
        self.supervisor = SimpleNamespace(stop=self.stop, start=self.start)
        self.put("postgres", "live")

    def put(self, name: str, text: str) -> None:
        directory = self.home / "data" / name
        directory.mkdir(parents=True)
        (directory / "content").write_text(text)

    def host_path(self, inside: str) -> Path:
        return self.home / inside.removeprefix("/srv/")

    def run(self, argv: Any, **_options: Any) -> CompletedProcess[str]:
        return CompletedProcess(argv, 0, "", "")

    def stop(self, _name: str) -> None:
        self.running = False

    def start(self, _name: str = "") -> None:
        self.running = True

    def contents(self) -> dict[str, str]:
        return {each.name: (each / "content").read_text() for each in sorted((self.home / "data").iterdir())}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path)

    def pausing(paused: bool) -> Callable[..., None]:
        return lambda *_arguments: setattr(found, "paused", paused)

    monkeypatch.setattr(module, "pause", pausing(True))
    monkeypatch.setattr(module, "resume", pausing(False))
    # The stack's own database may have been dropped.
    monkeypatch.setattr(module, "is_writable", lambda conninfo: found.running and "dbname=postgres" in conninfo)
    monkeypatch.setattr(module, "apply_access", lambda _conninfo, access: found.applied.append(access))
    control = lambda _self: Control(state="shut down", timeline=found.timeline, segment="0" * 24)  # noqa: E731
    monkeypatch.setattr(DataDirectory, "control", control)
    monkeypatch.setattr(DataDirectory, "promote", lambda _self, _newest: None)
    monkeypatch.setattr(DataDirectory, "archive_later", lambda _self, _newest: None)
    return found


def swap_of(machine: Machine) -> Swap:
    return Swap(
        sandbox=cast("Sandbox", machine),
        settings=LocalSettings(),
        records=RollbackRecords(machine.home),
        administrator="dbname=observatory",
    )


def record_of(kind: Kind, **changes: Any) -> RollbackRecord:
    fields = {
        "id": f"20260101-000000-{next(NUMBERS):04x}",
        "kind": kind,
        "target": "20260101-000000-0000" if kind == "undo" else "2026-01-01T00:00:00Z",
        "source": "backup",
        "actor": "tester",
        "reason": "a test",
        "at": datetime.now(UTC),
        "timeline": None if kind == "undo" else 3,
        "schema_before": 8,
        "schema_after": 7,
    }
    return RollbackRecord.model_validate({**fields, **changes})


def killed_before(machine: Machine, record: RollbackRecord, phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an exchange whose process ends right after it has recorded that a phase begins."""
    write = RollbackRecords.write

    def kill(self: RollbackRecords, written: RollbackRecord) -> RollbackRecord:
        write(self, written)
        if written.phase is phase:
            raise Killed
        return written

    with monkeypatch.context() as patched:
        patched.setattr(RollbackRecords, "write", kill)
        patched.setattr(Swap, "abandon", lambda *_arguments: None)  # SIGKILL runs no handler
        with pytest.raises(Killed):
            swap_of(machine).begin(record, ACCESS)


@pytest.mark.parametrize("kind", ["rollback", "undo"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_before_any_step_loses_nothing_and_the_next_command_settles_it(
    machine: Machine, kind: Kind, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(kind)
    machine.put(record.incoming, "other")
    killed_before(machine, record, phase, monkeypatch)
    assert sorted(machine.contents().values()) == ["live", "other"]

    swap = swap_of(machine)
    found = swap.records.unfinished()
    assert found is not None
    assert found.phase is phase
    if phase is Phase.STOP:
        swap.abandon(found)
        assert machine.contents()["postgres"] == "live"
        assert swap.records.all() == []
        assert record.incoming not in machine.contents() or kind == "undo"
    else:
        swap.records.end(swap.finish(found))
        assert machine.contents() == {"postgres": "other", record.outgoing: "live"}
        assert swap.records.unfinished() is None
        assert machine.applied == [ACCESS]
    assert (machine.running, machine.paused) == (True, False)
    assert list(swap.records.directory.glob("*.access")) == []


@pytest.mark.parametrize("phase", [Phase.SET_ASIDE, Phase.PUT_IN])
def test_a_kill_after_a_rename_and_before_its_record_is_finished_too(
    machine: Machine, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of("rollback")
    machine.put(record.incoming, "other")
    phases = list(Phase)
    killed_before(machine, record, phases[phases.index(phase) + 1], monkeypatch)
    swap = swap_of(machine)
    swap.records.write(record.changed(phase=phase))  # the rename is done, the record does not have it

    swap.records.end(swap.finish(record.changed(phase=phase)))

    assert machine.contents() == {"postgres": "other", record.outgoing: "live"}


def test_what_a_command_left_that_recorded_nothing_is_removed(machine: Machine) -> None:
    swap = swap_of(machine)
    kept, lost = record_of("rollback"), record_of("rollback")
    swap.records.write(kept)
    for record in (kept, lost):
        machine.put(record.incoming, "other")
        (swap.records.directory / f"{record.id}.access").write_text("secret")

    assert {file.name for file in swap.records.left_over()} == {lost.incoming, f"{lost.id}.access"}
    swap.remove_left_over()

    assert set(machine.contents()) == {"postgres", kept.incoming}
    assert [file.stem for file in swap.records.directory.glob("*.access")] == [kept.id]


def test_another_timeline_of_the_live_server_gives_the_exchange_up(machine: Machine) -> None:
    record = record_of("rollback", timeline=2)
    machine.put(record.incoming, "other")

    with pytest.raises(RollbackRefusedError, match="from timeline 2 to 3"):
        swap_of(machine).begin(record, ACCESS)

    assert machine.contents() == {"postgres": "live"}
    assert (machine.running, machine.paused) == (True, False)
    assert RollbackRecords(machine.home).all() == []


def test_directories_that_contradict_the_record_are_left_alone(machine: Machine) -> None:
    record = record_of("rollback", phase=Phase.SET_ASIDE)
    machine.put(record.incoming, "other")
    machine.put(record.outgoing, "foreign")

    with pytest.raises(DatabaseRollbackError, match="both exist"):
        swap_of(machine).finish(record)

    assert sorted(machine.contents().values()) == ["foreign", "live", "other"]


def test_an_undo_marks_its_rollback_and_only_the_newest_one_can_be_undone(machine: Machine) -> None:
    swap = swap_of(machine)
    first, second = (record_of("rollback", id=f"20260101-00000{number}-0000", phase=Phase.DONE) for number in (1, 2))
    swap.records.write(first)
    swap.records.write(second)
    assert swap.records.last() == second

    swap.records.end(record_of("undo", target=second.id, phase=Phase.AGREE))

    assert swap.records.last() == first
    swap.records.write(first.changed(discarded=True))
    assert swap.records.last() is None


def test_the_order_of_rollbacks_does_not_depend_on_a_clock_that_was_ahead(machine: Machine) -> None:
    records = RollbackRecords(machine.home)
    assert records.new_id() <= f"{datetime.now(UTC):%Y%m%d-%H%M%S}-ffff"
    records.write(record_of("rollback", id="29990101-235959-ffff", phase=Phase.DONE))
    later = records.write(record_of("rollback", id=records.new_id(), phase=Phase.DONE))
    assert later.id.startswith("29990102-000000-")
    assert records.last() == later


@pytest.mark.parametrize("text", ["{", '{"id": "20260101-000001-0000"}', '{"id": "../../etc"}'])
def test_a_damaged_record_is_an_error_that_names_the_file(machine: Machine, text: str) -> None:
    records = RollbackRecords(machine.home)
    records.directory.mkdir()
    (records.directory / "20260101-000001-0000.json").write_text(text)
    with pytest.raises(DatabaseRollbackError, match=r"20260101-000001-0000\.json: not the record of a rollback"):
        records.all()
