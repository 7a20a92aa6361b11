"""The log of a host process: what happens to its file ends no work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.runtime import Sandbox
from observatory.scheduling.process_log import log_to_file


@pytest.fixture
def log(tmp_path: Path, rootfs: Path) -> Iterator[tuple[logging.Logger, Path]]:
    """A log to a file of a stack, and its path."""
    sandbox = Sandbox(tmp_path / "home", rootfs)
    sandbox.make_home()
    log = logging.Logger("test")
    log_to_file(log, sandbox, "watcher")
    log.info("first")
    yield log, sandbox.host_path("/srv/log/watcher.log")
    for handler in log.handlers:
        handler.close()


def test_a_rotated_log_has_a_new_file(log: tuple[logging.Logger, Path]) -> None:
    logger, file = log
    file.rename(file.with_suffix(".1"))
    logger.info("second")
    assert file.read_text().endswith("INFO second\n")
    assert file.with_suffix(".1").read_text().endswith("INFO first\n")


@pytest.mark.parametrize("kind", ["a link", "no directory"])
def test_a_log_that_cannot_be_opened_ends_no_work_and_is_written_again_when_it_can(
    log: tuple[logging.Logger, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as `run_alone` does
    logger, file = log
    kept = file.parent.with_name("kept")
    if kind == "a link":
        file.unlink()
        file.symlink_to("/dev/null")
    else:
        file.parent.rename(kept)
        file.parent.touch()
    for _ in range(2):
        logger.error("lost")
    if kind == "a link":
        file.unlink()
    else:
        file.parent.unlink()
        kept.rename(file.parent)
    logger.info("third")
    assert file.read_text().endswith("INFO third\n")
    assert "lost" not in file.read_text()
