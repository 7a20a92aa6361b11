"""A monotonic clock that one module of the program alone reads."""

from __future__ import annotations

import time
from types import ModuleType

import pytest


def own_clock(patch: pytest.MonkeyPatch, module: ModuleType) -> list[float]:
    """Return the clock that `module` reads until the test ends: one number, in seconds, which the test sets.

    The clock of the process stays: an event loop of another thread that slept by a changed one would not wake up.
    """
    clock = [time.monotonic()]
    names = ModuleType("time")
    vars(names).update(vars(time), monotonic=lambda: clock[0])
    patch.setattr(module, "time", names)
    return clock
