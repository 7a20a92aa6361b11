"""Rate limits: a token bucket for each key, in each instance.

An instance counts only its own requests, so a key that uses N instances gets up to N times its limit. The limit
protects the instance from a misbehaving client and needs no shared state. It is not meant for billing.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .problems import TooManyRequests

SWEEP_AT = 10_000  # buckets; there are more only while more keys are in use within one minute
SECONDS_PER_MINUTE = 60


@dataclass(kw_only=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """Buckets that hold the requests of one minute and fill evenly: an idle key may send them all at once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str, *, limit_rpm: int) -> None:
        """Count one request of a key.

        Raises:
            TooManyRequests: the key has exceeded its limit; has the number of seconds to wait.
        """
        bucket = self._filled(key_id, limit_rpm)
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) * SECONDS_PER_MINUTE / limit_rpm)
            raise TooManyRequests(
                f"the API key is limited to {limit_rpm} requests a minute; send the request again in {wait} s", wait
            )
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
        """Remove the buckets of idle keys: after a minute they are full, like new buckets."""
        if len(self._buckets) < SWEEP_AT:
            return
        oldest = self._clock() - SECONDS_PER_MINUTE
        self._buckets = {key_id: bucket for key_id, bucket in self._buckets.items() if bucket.filled_at > oldest}
