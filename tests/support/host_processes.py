"""Host processes that a test has started in its own process, as a command does that does not outlive them."""

from __future__ import annotations

from observatory.scheduling import host_process
from tests.support.waiting import PATIENCE_S


def wait_for_ended() -> None:
    """Wait for the host processes that this process has started, each of which has a signal or a reason to end."""
    while host_process._children:
        host_process._children.pop().wait(PATIENCE_S)
