"""A killed test run leaves no process behind."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

RUN = """
import subprocess, sys, time
from pathlib import Path
from tests.support import reaper
root = Path(sys.argv[1])
reaper.watch(root)
left = subprocess.Popen(["sleep", "600"], cwd=root, start_new_session=True)
print(left.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_the_processes_of_a_checkout_end_with_the_run_that_made_it(tmp_path: Path, end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = psutil.Process(int(run.stdout.readline()))
        getattr(run, end)()
    left.wait(timeout=60)
