"""Rotates the `local` stack's logs with logrotate, in the stack's sandbox. A scheduled job runs it."""

from __future__ import annotations

from observatory.nodes import Paths
from observatory.nodes.logrotate import command, logrotate_files, state_directory
from observatory.runtime import RuntimeFault, Sandbox
from observatory.settings import StackSettings

SECONDS = 300


class LogRotationError(RuntimeFault):
    """logrotate failed; the message ends with its output. No line is lost: daemons keep writing to the same logs."""


def rotate_logs(sandbox: Sandbox, settings: StackSettings, *, force: bool = False) -> list[str]:
    """Rotate the logs that are due by size or age, or all with `force`; return the names of the rotated files.

    Raises:
        LogRotationError: logrotate failed.
    """
    paths = Paths()
    for path, text in logrotate_files(settings, paths).items():
        sandbox.write_file(path, text)
    sandbox.make_directory(state_directory(paths))
    directory = sandbox.host_path(paths.log)
    before = {file.name for file in directory.iterdir()}
    done = sandbox.run(command(paths, force=force), timeout=SECONDS, check=False)
    if done.returncode:
        output = (done.stderr + done.stdout).strip()
        raise LogRotationError(f"logrotate of {directory} failed, exit status {done.returncode}:\n{output}")
    return sorted(file.name for file in directory.iterdir() if file.name not in before and file.suffix != ".log")
