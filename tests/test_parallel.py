"""Work in parallel ends as one: at the first error, and at a signal, with the child processes that it waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from observatory.interruption.parallel import ended_by, in_parallel
from observatory.runtime.processes import process_group
from tests.support.waiting import until

HANGING = """
import sys
from pathlib import Path

from observatory.interruption.parallel import in_parallel
from observatory.runtime.processes import process_group


def hang(file):
    for number in range(2):
        with process_group(["sleep", "infinity"], env={}) as process:
            with Path(file).open("a") as pids:
                pids.write(f"{process.pid}\\n")
            process.communicate()  # the caller takes the end of a killed process for a failure, and goes on


in_parallel(hang, sys.argv[1:])
"""


def _pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_children_that_hang_and_no_other_begins(tmp_path: Path, number: signal.Signals) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    script = f"from observatory.interruption import interrupt_on_signals\ninterrupt_on_signals()\n{HANGING}"
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, files)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: all(map(_pids, files)), "both children to hang")
            process.send_signal(number)
            assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
        finally:
            process.kill()
            pids = [pid for file in files for pid in _pids(file)]
            left = [pid for pid in pids if _runs(pid)]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
    assert (len(pids), left) == (2, [])


def test_the_first_error_ends_the_others_and_is_raised(tmp_path: Path) -> None:
    started = tmp_path / "started"

    def work(item: str) -> None:
        if item == "fails":
            until(started.exists, "the other to hang")
            raise ValueError(item)
        with process_group(["sleep", "infinity"], env={}) as process:
            started.touch()
            process.communicate()

    with pytest.raises(ValueError, match="fails"):
        in_parallel(work, ["hangs", "fails"])


def test_results_have_the_order_of_the_items() -> None:
    assert in_parallel(str, [3, 1, 2]) == ["3", "1", "2"]


def test_outside_of_parallel_work_nothing_is_ended_by_others() -> None:
    with ended_by(lambda: pytest.fail("was called")):
        pass
