"""Opening the console of a stack: the read-only web page that `up` starts (`observatory.console`).

A link works once. Its token is a file of the checkout, which only this user can read; the console removes the file when
the link is opened. The file's name is a digest, so that a list of the directory has no token.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from observatory.engines import embedded as engine
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.platforms.stack_state import state_options
from observatory.runtime import RuntimeFault
from observatory.workspace import Workspace, console_links

LINK_SECONDS = 300  # between the command and the browser
TOKEN_BYTES = 32


class ConsoleNotRunningError(RuntimeFault):
    """The console of the stack does not run, or does not respond."""


@dataclass(frozen=True)
class ConsoleLinks:
    """The links of a console that were not opened yet: files of a directory."""

    directory: Path

    def create(self) -> str:
        """Return the token of a new link, and remove links that have expired."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.remove(older_than_s=LINK_SECONDS)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._file(token).touch(mode=0o600)
        return token

    def redeem(self, token: str) -> bool:
        """Return whether a link with this token is valid; it is not a second time, also at the same moment."""
        file = self._file(token)
        try:
            created = file.stat().st_mtime
            file.unlink()
        except FileNotFoundError:
            return False
        return abs(time.time() - created) < LINK_SECONDS  # the clock may have been set back

    def remove(self, *, older_than_s: float = 0) -> None:
        """Remove the links that are older."""
        for file in self.directory.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # the console opens it at this moment
                if abs(time.time() - file.stat().st_mtime) >= older_than_s:
                    file.unlink()

    def _file(self, token: str) -> Path:
        return self.directory / hashlib.sha256(token.encode()).hexdigest()


def open_console(workspace: Workspace) -> str:
    """Return a URL that opens the stack's console once, within five minutes.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        ConsoleNotRunningError: the console does not run.
    """
    from observatory.scheduling.scheduler_process import console_ready  # noqa: PLC0415 - psutil only where it is used

    check_supported(open_platform(workspace), "console")
    outputs = engine.outputs(state_options(workspace))
    if not outputs or not workspace.home.is_dir():
        raise StackNotUpError(workspace.stack)
    # A link is only for the console itself: another program may have its port while it does not run.
    if "console_url" not in outputs or not console_ready(workspace.sandbox):
        raise ConsoleNotRunningError(
            f"the console of the stack {workspace.stack!r} does not run",
            remedy="Run `observatory up`; `observatory logs console` shows why it ended.",
        )
    return f"{outputs['console_url']}open/{ConsoleLinks(console_links(workspace)).create()}"
