"""The machine's clock."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks, as deliveries use them."""

    def now(self) -> float:
        """Return seconds that only grow, whatever is done to the time of day."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
