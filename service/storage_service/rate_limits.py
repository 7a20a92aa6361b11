"""How often a key may ask: a token bucket for each key, in each instance.

An instance knows its own requests only, so a key that is spread over N instances gets up to N times its limit. It is a
guard of the instance against a client that runs wild, and needs no shared state that could fail; it is no bill.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .problems import TooManyRequests

SWEEP_AT = 10_000  # buckets; more are kept only while more keys than that are in use at once
SECONDS_PER_MINUTE = 60


@dataclass(kw_only=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """Buckets that hold a minute's requests and fill evenly: an idle key may send a whole minute's at once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str, *, limit_rpm: int) -> None:
        """Count one request of a key.

        Raises:
            TooManyRequests: the key has used up its limit; says after how many seconds to come again.
        """
        bucket = self._filled(key_id, limit_rpm)
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) * SECONDS_PER_MINUTE / limit_rpm)
            raise TooManyRequests(f"the API key may send {limit_rpm} requests a minute; try again in {wait} s", wait)
        bucket.tokens -= 1

    def _filled(self, key_id: str, limit_rpm: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key_id)
        if bucket is None:
            self._make_room()
            bucket = self._buckets[key_id] = _Bucket(tokens=limit_rpm, filled_at=now)
        gained = (now - bucket.filled_at) * limit_rpm / SECONDS_PER_MINUTE
        bucket.tokens, bucket.filled_at = min(limit_rpm, bucket.tokens + gained), now
        return bucket

    def _make_room(self) -> None:
        """Forget idle keys: after a minute their buckets are full, as new ones are."""
        if len(self._buckets) < SWEEP_AT:
            return
        oldest = self._clock() - SECONDS_PER_MINUTE
        self._buckets = {key_id: bucket for key_id, bucket in self._buckets.items() if bucket.filled_at > oldest}
