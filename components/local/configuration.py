"""The configuration of a daemon that refuses a wrong one at a reload, goes on with the old one, and answers as before.

The new files are checked by the daemon's own tool before it reads them, and after a reload its metrics have to say that
it has loaded them. If it refuses them, its files are again those that it runs with, so that a restart finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from observatory.nodes import Unit
from observatory.runtime import Probe, Sandbox
from observatory.runtime.errors import ConfigurationRefused
from observatory.waiting import wait_until

CHECK_S = 120.0
SUCCESSFUL, LOADED_AT = "successful", "success_timestamp_seconds"
MOST_LINES = 10  # of what a tool reports
PASSED = re.compile(r"\s*(Checking \S+(\s+SUCCESS)?|SUCCESS.*|Found:| - .*|FAILED:|amtool: error.*)?\s*")
PLACE = re.compile(r"\bline (\d+)|:\s*(\d+):")
REMEDY = "Correct the setting that this line comes from, and run `observatory up` again."


@contextmanager
def kept_if_refused(sandbox: Sandbox, unit: Unit) -> Iterator[None]:
    """Put the unit's files back as they were if the block ends with `ConfigurationRefused`."""
    if unit.check is None:
        yield
        return
    files = {path: sandbox.host_path(path) for path in unit.files}
    before = {path: file.read_bytes() if file.is_file() else None for path, file in files.items()}
    try:
        yield
    except ConfigurationRefused:
        for path, content in before.items():
            if content is None:
                sandbox.remove_file(path)
            else:
                sandbox.write_file(path, content)
        raise


def check(sandbox: Sandbox, unit: Unit) -> None:
    """Check the files of a unit by its daemon's own tool.

    Raises:
        ConfigurationRefused: the daemon would refuse them.
    """
    if unit.check is None:
        return
    done = sandbox.run(unit.check, check=False, timeout=CHECK_S)
    if done.returncode:
        lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if not PASSED.fullmatch(line)]
        report = "\n".join([*lines[:MOST_LINES], *_quoted(unit, f"{done.stdout}\n{done.stderr}", lines)])
        raise ConfigurationRefused(
            f"{unit.name} refuses its new configuration, and goes on with the old one:\n{report}", remedy=REMEDY
        )


def was_refused(sandbox: Sandbox, unit: Unit) -> bool:
    """Return whether a daemon says that it has refused what it read last."""
    return _reload_metric(sandbox, unit, SUCCESSFUL) == 0


def check_loaded(sandbox: Sandbox, unit: Unit, *, since: float) -> None:
    """Wait until a daemon says that it has loaded its configuration after the time `since`.

    Raises:
        ConfigurationRefused: it has not.
    """
    if unit.reload_metrics is None:
        return
    if not wait_until(lambda: (_reload_metric(sandbox, unit, LOADED_AT) or 0) > since, unit.settle_seconds):
        said = "\n".join(sandbox.supervisor.log_tail(unit.name))
        raise ConfigurationRefused(
            f"{unit.name} has not loaded its new configuration, and goes on with the old one. The end of its log:\n"
            f"{said}",
            remedy=f"See `observatory logs {unit.name}`, and run `observatory up` again.",
        )


def _reload_metric(sandbox: Sandbox, unit: Unit, name: str) -> float | None:
    if unit.reload_metrics is None:
        return None
    text = Probe(**unit.ready.target(sandbox.host_path)).read("/metrics")
    found = re.search(rf"^{unit.reload_metrics}_{name} (\S+)$", text or "", re.MULTILINE)
    return float(found[1]) if found else None


def _quoted(unit: Unit, output: str, lines: Sequence[str]) -> list[str]:
    """Return the file and the text of the line that a tool reports; it names the refused file last."""
    named = max(unit.files, key=lambda path: output.rfind(PurePosixPath(path).name))
    found = PLACE.search("\n".join(lines))
    number = int(found[1] or found[2]) if found else 0
    text = unit.files[named].splitlines()
    return [f"{named}, line {number}: {text[number - 1]}"] if 0 < number <= len(text) else []
