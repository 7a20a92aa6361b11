"""The logs of a sandbox's programs: their last lines, and how a program ended."""

from __future__ import annotations

import contextlib
import os
import re

from observatory.runtime.errors import DaemonFailed
from observatory.runtime.sandbox_files import SandboxFiles

_TAIL_BYTES = 65_536
# Of a failed daemon's log: a dynamic provider reports its error in gRPC metadata, which is limited to 8 KiB.
_EXCERPT_CHARACTERS = 3000


def log_tail(files: SandboxFiles, name: str, lines: int = 20) -> list[str]:
    """Return the last `lines` lines of the log of the program `name`, within its last 64 KiB."""
    with contextlib.suppress(FileNotFoundError), files.open_read(f"/srv/log/{name}.log") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-lines:]
    return []


def last_end(files: SandboxFiles, name: str) -> str | None:
    """Return how the program last ended, such as `exit status 1`, from supervisord's log: its API omits short runs."""
    ends = re.findall(rf" exited: {name} \((.*?)[;)]", "\n".join(log_tail(files, "supervisord", 200)))
    return str(ends[-1]) if ends else None


def failure(files: SandboxFiles, name: str, problem: str) -> DaemonFailed:
    """Return the error of a program, with the last lines of its log."""
    lines = "\n".join(f"  {line}" for line in log_tail(files, name)) or "  (the log is empty)"
    lines = lines if len(lines) <= _EXCERPT_CHARACTERS else f"  …{lines[-_EXCERPT_CHARACTERS:]}"
    return DaemonFailed(f"{name} {problem}. The last lines of {files.home}/log/{name}.log:\n{lines}")
