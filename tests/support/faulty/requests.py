"""Faults that a client sees in status or time: errors, refusals, silence and slowness."""

from __future__ import annotations

import asyncio
import os
import random
import time

from .exchange import STARTED, Exchange, Fault

SHARE_OF_SILENCE, SHARE_OF_WAITS, SHARE_OF_REFUSALS = 0.1, 0.045, 0.1
LONG_S, SHORT_S, BLOCKED_S = 5.0, 0.4, 0.6
CONCURRENT = 8
ALONE_S, TOGETHER_S = 0.02, 1.0  # a second, so that requests that are sent at once meet also on a busy machine
BLOCKS_EVERY = 40
PERIOD_S = 15.0  # of faults that come and go
FIRST_S, SECOND_S = 10.0, 5.0  # of each period
DRAW = random.Random(1)  # noqa: S311 - no secret


class Unready(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.path == "/health/ready":
            await exchange.answer(503, {"status": "failed"})
        else:
            await exchange.pass_on()


class Broken(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.path == "/v1/metrics":
            raise RuntimeError("always")
        await exchange.pass_on()


class Failing(Fault):
    """Every twentieth write."""

    def __init__(self, app: object) -> None:
        super().__init__(app)  # type: ignore[arg-type]
        self._writes = 0

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            self._writes += 1
            if self._writes % 20 == 0:
                raise RuntimeError("a fault")
        await exchange.pass_on()


class FailingReads(Fault):
    """Two reads of single traces in a hundred, and nothing else."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.trace_id and DRAW.random() < 0.02:
            raise RuntimeError("a fault")
        await exchange.pass_on()


class Unavailable(Fault):
    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and DRAW.random() < 0.08:
            await exchange.answer(
                503, {"title": "Service Unavailable", "status": 503}, headers=((b"retry-after", b"1"),)
            )
        else:
            await exchange.pass_on()


class Alternating(Fault):
    """Bad, bad, good: every second request fails for ten seconds of fifteen."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and self._bad() and self.number % 2:
            raise RuntimeError("a fault")
        await exchange.pass_on()

    @staticmethod
    def _bad() -> bool:
        return (time.monotonic() - STARTED) % PERIOD_S < FIRST_S


class AlternatingUnknown(Alternating):
    """Bad, bad, and then no metrics."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics" and not self._bad():
            raise RuntimeError("no metrics")
        await super().handle(exchange)


class HalfRefused(Fault):
    """401 for every second valid request."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and self.number % 2:
            await exchange.answer(401, {"title": "Unauthorized", "status": 401})
        else:
            await exchange.pass_on()


class HalfRefusedLate(HalfRefused):
    late = True


class RateLimited(Fault):
    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and DRAW.random() < SHARE_OF_REFUSALS:
            await exchange.answer(429, {"title": "Too Many Requests", "status": 429}, headers=((b"retry-after", b"1"),))
        else:
            await exchange.pass_on()


class Redirected(Fault):
    """Writes lead to another address, as a route with a slash at its end does."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            await exchange.answer(307, {}, headers=((b"location", exchange.path.encode() + b"/"),))
        else:
            await exchange.pass_on()


class RedirectedLate(Redirected):
    late = True


class Unanswered(Fault):
    """A tenth of the reads gets no response."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.trace_id and DRAW.random() < SHARE_OF_SILENCE:
            await asyncio.sleep(3600)
        await exchange.pass_on()


class CutOff(Fault):
    """A tenth of the reads ends in the middle of the body."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.trace_id and DRAW.random() < SHARE_OF_SILENCE):
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        raise RuntimeError("a fault after the headers")


class Slow(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/"):
            await asyncio.sleep(1.5)
        await exchange.pass_on()


class SlowShare(Fault):
    """A few requests wait long: the 95th percentile does not show them."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and DRAW.random() < SHARE_OF_WAITS:
            await asyncio.sleep(LONG_S)
        await exchange.pass_on()


class SlowReads(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.read:
            await asyncio.sleep(SHORT_S)
        await exchange.pass_on()


class SlowWrites(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            await asyncio.sleep(SHORT_S)
        await exchange.pass_on()


class SlowLater(Fault):
    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and time.monotonic() > STARTED + 30:
            await asyncio.sleep(SHORT_S)
        await exchange.pass_on()


class Blocking(Fault):
    """Every fortieth request stops the whole process for a moment."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and self.number % BLOCKS_EVERY == 0:
            time.sleep(BLOCKED_S)
        await exchange.pass_on()


class CrashingTogether(Fault):
    """Ends when many requests are in progress at the same time."""

    in_progress = 0

    async def handle(self, exchange: Exchange) -> None:
        if not exchange.path.startswith("/v1/"):
            await exchange.pass_on()
            return
        self.in_progress += 1
        try:
            await asyncio.sleep(ALONE_S if self.in_progress == 1 else TOGETHER_S)
            if self.in_progress >= CONCURRENT:
                os._exit(1)
            await exchange.pass_on()
        finally:
            self.in_progress -= 1


class CrashingAfterRequests(Fault):
    late = True

    async def handle(self, exchange: Exchange) -> None:
        if self.number > 200:
            os._exit(1)
        await exchange.pass_on()
