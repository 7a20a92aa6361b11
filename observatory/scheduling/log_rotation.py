"""Rotation of the `local` stack's logs, by logrotate in the stack's sandbox; when is a job of the host's."""

from __future__ import annotations

from observatory.nodes import Paths
from observatory.nodes.logrotate import command, logrotate_files, state_directory
from observatory.runtime import RuntimeFault, Sandbox
from observatory.settings import StackSettings

SECONDS = 300


class LogRotationError(RuntimeFault):
    """logrotate failed; the message ends with what it said. No line is lost: the logs go on where they were."""


def rotate_logs(sandbox: Sandbox, settings: StackSettings, *, force: bool = False) -> list[str]:
    """Rotate the logs that are due by size or age, all with `force`; return the names of the files that came of it.

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
        said = (done.stderr + done.stdout).strip()
        raise LogRotationError(f"logrotate of {directory} failed, exit status {done.returncode}:\n{said}")
    return sorted(file.name for file in directory.iterdir() if file.name not in before and file.suffix != ".log")
