"""logrotate: the logs below the stack's home, rotated by size and by age so that no line is lost.

A log is renamed, and its writer continues in the renamed file until it opens the new one: supervisord at SIGUSR2, the
scheduler and the jobs at their next line. The renamed file is compressed at the next rotation, when no process writes
to it. (`copytruncate` would lose lines that are written between the copy and the truncation.)
"""

from __future__ import annotations

from observatory.nodes.unit import Paths, render
from observatory.settings import StackSettings

PROGRAM = "/usr/sbin/logrotate"
MOST_FILES = 100  # of one log, whatever their age: a flooding daemon does not fill the disk


def config_file(paths: Paths) -> str:
    """Return the path of logrotate's configuration."""
    return f"{paths.config}/logrotate.conf"


def state_directory(paths: Paths) -> str:
    """Return the directory of logrotate's state: the last rotation of each log."""
    return f"{paths.data}/logrotate"


def command(paths: Paths, *, force: bool = False) -> tuple[str, ...]:
    """Return the command line that rotates the logs that are due, or all with `force`."""
    arguments = ("--force",) if force else ()
    return (PROGRAM, "--state", f"{state_directory(paths)}/status", *arguments, config_file(paths))


def logrotate_files(settings: StackSettings, paths: Paths) -> dict[str, str]:
    """Return logrotate's configuration."""
    text = render("logrotate.conf.j2", settings=settings, paths=paths, most_files=MOST_FILES)
    return {config_file(paths): text}
