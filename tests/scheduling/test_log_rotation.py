"""Log rotation: by size and by age, and no line is lost while a daemon writes."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.runtime import Program, Sandbox
from observatory.scheduling.log_rotation import LogRotationError, rotate_logs
from observatory.settings import LocalSettings, Logs
from tests.support.waiting import until

SETTINGS = LocalSettings()
ROTATIONS = 4
# Not so fast that supervisord rotates the log by its size, however late a rotation is.
LINE = 'i=$((i+1)); echo "line $i"; [ $((i % 1000)) -gt 0 ] || sleep 0.01'
WRITER = f"i=0; while [ ! -e /srv/data/stop ]; do {LINE}; done; echo end; exec sleep 1000"
DEADLINE_S = 120


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "home", rootfs)
    sandbox.start()
    yield sandbox
    sandbox.stop(timeout=10)


def logs_of(sandbox: Sandbox, name: str) -> list[Path]:
    """Return a program's logs, the oldest first."""
    files = sandbox.host_path("/srv/log").glob(f"{name}.log*")
    return sorted(files, key=lambda file: (file.name == f"{name}.log", file.name))


def text(file: Path) -> str:
    return (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()


def test_no_line_is_lost_while_a_daemon_writes(sandbox: Sandbox) -> None:
    log = sandbox.host_path("/srv/log/writer.log")

    def has_lines() -> bool:
        return log.exists() and log.stat().st_size > 0

    sandbox.supervisor.apply(Program(name="writer", command=("sh", "-c", WRITER)))
    until(has_lines, "the first lines")
    for _ in range(ROTATIONS):
        time.sleep(1.1)  # rotated files are named by the second
        assert any(name.startswith("writer.log-") for name in rotate_logs(sandbox, SETTINGS, force=True))
        until(has_lines, "lines in the new log")  # which supervisord opens some time after logrotate's signal
    sandbox.host_path("/srv/data/stop").touch()
    deadline = time.monotonic() + DEADLINE_S
    while (found := "".join(text(file) for file in logs_of(sandbox, "writer")).splitlines())[-1:] != ["end"]:
        assert time.monotonic() < deadline
    assert len(logs_of(sandbox, "writer")) == ROTATIONS + 1
    assert sum(file.suffix == ".gz" for file in logs_of(sandbox, "writer")) == ROTATIONS - 1
    assert len(found) > ROTATIONS
    assert found == [*(f"line {number}" for number in range(1, len(found))), "end"]


def test_a_log_past_its_size_is_rotated_and_a_small_one_is_not(sandbox: Sandbox) -> None:
    log = sandbox.host_path("/srv/log")
    (log / "big.log").write_bytes(b"x" * 2_000_000)
    (log / "small.log").write_bytes(b"x")
    assert rotate_logs(sandbox, SETTINGS) == []  # the first look only notes the day
    rotated = rotate_logs(sandbox, LocalSettings(logs=Logs(rotate_mb=1)))
    assert [name.split("-")[0] for name in rotated] == ["big.log"]
    assert (log / "small.log").exists()


def test_rotated_logs_go_when_they_are_too_old(sandbox: Sandbox) -> None:
    log = sandbox.host_path("/srv/log")
    old, kept = log / "a.log-20200101T000000.gz", log / "a.log-20200102T000000.gz"
    for file, days in ((old, 15), (kept, 13)):
        file.write_bytes(gzip.compress(b"line\n"))
        os.utime(file, (time.time() - days * 86_400,) * 2)
    (log / "a.log").write_text("line\n")
    rotate_logs(sandbox, SETTINGS, force=True)
    assert not old.exists()
    assert kept.exists()


def test_a_failure_reports_the_output_of_logrotate(sandbox: Sandbox) -> None:
    sandbox.host_path("/srv/log/a.log").write_text("line\n")
    sandbox.host_path("/srv/run/supervisord.pid").unlink()
    with pytest.raises(LogRotationError, match=r"(?s)exit status 1.*supervisord\.pid"):
        rotate_logs(sandbox, SETTINGS, force=True)
