"""The machine's clock."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clock, as deliveries use it."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
