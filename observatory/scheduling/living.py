"""Processes whose end is noticed without looking for them again: each is held by a descriptor of the kernel's."""

from __future__ import annotations

import os
import select
from collections.abc import Collection


class Living:
    """Some processes, as the last two looks found them."""

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}
        self._known = False

    @property
    def pids(self) -> Collection[int]:
        """The processes that the last look found."""
        return self._descriptors.keys()

    def hold(self, pids: Collection[int]) -> None:
        """Hold the processes that a look has just found.

        They are known once a second look finds the same: an id may have been used again before its process was held.
        """
        self._known = bool(pids) and self._descriptors.keys() == set(pids) and not self._have_ended()
        if not self._known:
            self.release()
            self._descriptors = {pid: held for pid in set(pids) if (held := _held(pid)) is not None}

    def known(self) -> bool:
        """Return whether the processes are known, and none of them has ended."""
        return self._known and not self._have_ended()

    def release(self) -> None:
        """Hold no process any more."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors, self._known = {}, False

    def _have_ended(self) -> bool:
        """Return whether any has ended."""
        ends = select.poll()
        for descriptor in self._descriptors.values():
            ends.register(descriptor, select.POLLIN)
        return bool(ends.poll(0))


def _held(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # it has ended
        return None
