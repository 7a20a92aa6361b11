"""The files of the supervisor itself: finds and repairs what differs from what was written."""

from __future__ import annotations

from observatory.runtime.drift import Drift, extra_files, find_drift
from observatory.runtime.programs import CONFIGURATION, CONFIGURATION_FILE, PROGRAMS
from observatory.runtime.sandbox import Sandbox


def supervisor_drift(sandbox: Sandbox) -> tuple[Drift, ...]:
    """Return what differs: the configuration, and files of programs that the supervisor has not loaded."""
    configuration = find_drift(sandbox, {CONFIGURATION_FILE: CONFIGURATION})
    if not sandbox.supervisor.answers():
        return configuration
    names = [status.name for status in sandbox.supervisor.statuses()]
    loaded = [f"{PROGRAMS}/{name}.{suffix}" for name in names for suffix in ("conf", "sh")]
    return (*configuration, *extra_files(sandbox, loaded, PROGRAMS))


def repair_supervisor(sandbox: Sandbox) -> None:
    """Write the configuration, and remove the files of programs that are not loaded."""
    sandbox.write_file(CONFIGURATION_FILE, CONFIGURATION)
    for drift in supervisor_drift(sandbox):
        sandbox.remove_file(drift.path)


def restart_programs_of(sandbox: Sandbox, directory: str) -> None:
    """Restart the running programs whose start script names a directory, one after the other."""
    for status in sandbox.supervisor.statuses():
        script = sandbox.host_path(f"{PROGRAMS}/{status.name}.sh")
        if status.running and script.is_file() and f"{directory}/" in script.read_text(encoding="utf-8"):
            sandbox.supervisor.restart(status.name)
