"""A repository that turns out to be damaged: the same target is restored from the other one, or from none."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.backups import restored as module
from observatory.backups.cover import Cover, NotEnoughSpaceError
from observatory.backups.repository_contents import UncoveredTargetError
from observatory.backups.restored import RestoredInstance, RestoreError, UnreadableSourceError, restored_instance
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupError
from observatory.errors import ObservatoryError
from observatory.operations import database_rollback
from observatory.progress import Phase, Progress

OUTPUT = "exit status 29:\nP00   INFO: restore\nP00  ERROR: [029]: bad bundle\nP00   INFO: end"


def cover(number: int) -> Cover:
    return Cover(
        target=RecoveryTarget.at_time(datetime.fromisoformat("2026-11-29T12:00:00Z")),
        repository=number,
        label=f"2026112{number}-000000F",
        timeline=1,
        backup_timeline=1,
        stop=0,
        inclusive=True,
        segments=("000000010000000000000001", "000000010000000000000001"),
        replayed=1,
        database_bytes=1,
        needed_bytes=1,
        estimated_s=7,
    )


@dataclass
class Restores:
    """Restores that fail from some repositories, and what other covers there are."""

    damaged: tuple[int, ...] = (1,)
    covered: ObservatoryError | None = None
    tried: list[int] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Any:
        return SimpleNamespace(
            sandbox=None,
            host=Path("/nonexistent"),
            is_kept=False,
            clear=lambda: self.cleared.append(len(self.tried)),
            end_processes=lambda: None,
        )

    def restore(self, _directory: Any, chosen: Cover) -> None:
        self.tried.append(chosen.repository)
        if chosen.repository in self.damaged:
            raise UnreadableSourceError(f"{chosen.label} was not restored: {OUTPUT}")

    def find(self, _sandbox: Any, target: RecoveryTarget, *, repository: int) -> Cover:
        assert target == cover(1).target
        if self.covered:
            raise self.covered
        return cover(repository)

    def repository(self, *, others: bool = True) -> int:
        """Restore the target, and return the number of the repository that it is from."""
        on_other = self.lines.append if others else None
        with restored_instance(cover(1), directory=self.directory, on_other=on_other) as instance:
            return instance.cover.repository


@pytest.fixture
def restores(monkeypatch: pytest.MonkeyPatch) -> Restores:
    found = Restores()
    monkeypatch.setattr(module, "configured_repositories", lambda _sandbox: [1, 2])
    monkeypatch.setattr(module, "find_cover", found.find)
    monkeypatch.setattr(module, "_restore", found.restore)
    monkeypatch.setattr(RestoredInstance, "start", lambda _self, *, pause: None)  # noqa: ARG005
    return found


def test_a_damaged_repository_gives_way_to_the_other_one_with_one_line_that_says_why(restores: Restores) -> None:
    assert restores.repository() == 2
    assert (restores.tried, restores.cleared) == ([1, 2], [1])  # in an empty directory
    [line] = restores.lines
    assert line == (
        "20261121-000000F in repository 1 cannot be restored (P00  ERROR: [029]: bad bundle): restoring "
        "20261122-000000F from repository 2 instead, about 7 s"
    )


def test_wal_that_cannot_be_replayed_gives_way_too(restores: Restores, monkeypatch: pytest.MonkeyPatch) -> None:
    restores.damaged = ()

    def start(instance: RestoredInstance, *, pause: bool) -> None:
        if instance.cover.repository == 1:
            raise UnreadableSourceError(
                "not reached: LOG:  redo\nFATAL:  the database system is not yet accepting connections\n"
                "FATAL:  recovery ended before the target\nLOG:  end"
            )

    monkeypatch.setattr(RestoredInstance, "start", start)
    assert restores.repository() == 2
    assert "(FATAL:  recovery ended before the target)" in restores.lines[0]


def test_a_restore_that_may_use_one_repository_only_fails(restores: Restores) -> None:
    """As a drill, and as a command with --repository."""
    with pytest.raises(RestoreError, match="20261121-000000F was not restored"):
        restores.repository(others=False)
    assert (restores.tried, restores.lines) == ([1], [])


@pytest.mark.parametrize("reason", [UncoveredTargetError("a gap"), NotEnoughSpaceError("full"), BackupError("gone")])
def test_without_another_cover_the_first_failure_is_the_result(restores: Restores, reason: ObservatoryError) -> None:
    restores.covered = reason
    with pytest.raises(RestoreError, match="20261121-000000F was not restored"):
        restores.repository()
    assert (restores.tried, restores.lines) == ([1], [])


def test_two_damaged_repositories_are_each_tried_once(restores: Restores) -> None:
    restores.damaged = (1, 2)
    with pytest.raises(RestoreError, match="20261122-000000F was not restored"):
        restores.repository()
    assert restores.tried == [1, 2]


def test_a_failure_that_is_not_of_the_repository_is_not_repeated(
    restores: Restores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_instance: RestoredInstance, *, pause: bool) -> None:
        raise RestoreError("it cannot pause there")

    restores.damaged = ()
    monkeypatch.setattr(RestoredInstance, "start", start)
    with pytest.raises(RestoreError, match="it cannot pause there"):
        restores.repository()
    assert restores.tried == [1]


@pytest.mark.parametrize("repository", [None, 1])
def test_a_rollback_of_the_database_uses_the_other_repository_unless_one_is_named(
    repository: int | None, restores: Restores, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[Progress] = []
    platform: Any = SimpleNamespace(workspace=SimpleNamespace(sandbox=None))
    stack = database_rollback._Stack(platform=platform, swap=None, report=progress.append, continued=None)  # type: ignore[arg-type]
    stack.__dict__["live"] = SimpleNamespace(report=lambda _report: None, lost=False)
    monkeypatch.setattr(database_rollback, "find_cover", lambda *_arguments, **_options: cover(1))
    monkeypatch.setattr(database_rollback, "scratch_directory", lambda *_names: nullcontext(restores.directory))
    monkeypatch.setattr(database_rollback._Stack, "_plan", lambda _self, instance, _dump: instance.cover.repository)

    def planned() -> Any:
        with stack.restored(cover(1).target, repository) as found:
            return found.plan

    if repository:
        with pytest.raises(RestoreError):
            planned()
    else:
        assert planned() == 2
    warned = [each.task for each in progress if each.phase is Phase.WARNED]
    assert [each.endswith("from repository 2 instead, about 7 s") for each in warned] == [True] * (repository is None)
