"""Faults of content that a small write, read once, does not show."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from typing import Any

from .exchange import App, Exchange, Fault

KEPT_ITEMS = 100  # of a body
SHARE_LOST = 0.02
ONCE = 20  # the number of the request to a trace
DIGITS = 6  # of costs
DRAW = random.Random(3)  # noqa: S311 - no secret
HIDDEN = (b'status="5', b'"error"')  # of the lines of the metrics


class LargeBatches(Fault):
    """Stores the first items of a large body only."""

    async def handle(self, exchange: Exchange) -> None:
        if not exchange.write:
            await exchange.pass_on()
            return
        items = await exchange.items()
        if len(items) > KEPT_ITEMS:
            exchange.replace_items(items[:KEPT_ITEMS])
        status, body = await exchange.response()
        await exchange.answer(status, {"accepted": len(items)} if status == 201 else body)


class StaleReads(Fault):
    """Keeps each trace as it was first read, whatever is written later."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._kept: dict[str, tuple[int, bytes]] = {}

    async def handle(self, exchange: Exchange) -> None:
        if not exchange.trace_id:
            await exchange.pass_on()
            return
        name = f"{exchange.header(b'authorization')!r} {exchange.path} {exchange.scope['query_string']!r}"
        if name not in self._kept:
            status, body = await exchange.response()
            if status != 200:
                await exchange.answer(status, body)
                return
            self._kept[name] = status, body
        await exchange.answer(*self._kept[name])


class StaleReadsLate(StaleReads):
    late = True


class OwnStaleReads(StaleReads):
    """Forgets what it has kept of a trace when it writes to it; what another process writes, it does not see."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            for item in await exchange.items():
                changed = f"/v1/traces/{item.get('trace_id')} "
                self._kept = {name: kept for name, kept in self._kept.items() if changed not in name}
        await super().handle(exchange)


class FirstValues(Fault):
    """A span that is sent again keeps its first values."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._seen: set[tuple[str, str]] = set()

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.write and exchange.path == "/v1/traces"):
            await exchange.pass_on()
            return
        items = await exchange.items()
        if all(isinstance(item, dict) for item in items) and any(_name(item) in self._seen for item in items):
            exchange.replace_items([item for item in items if _name(item) not in self._seen])
        status, body = await exchange.response()
        if status == 201:
            self._seen.update(_name(item) for item in items)
        await exchange.answer(status, {"accepted": len(items)} if status == 201 else body)


def _name(item: dict[str, Any]) -> tuple[str, str]:
    return str(item.get("trace_id")), str(item.get("span_id"))


class ChangedReads(Fault):
    """Changes the document of each read."""

    def change(self, document: dict[str, Any]) -> None:
        """Change it."""

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.read and exchange.path.startswith("/v1/traces")):
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        if status != 200:
            await exchange.answer(status, body)
            return
        document = json.loads(body)
        self.change(document)
        await exchange.answer(status, document)


class RepeatedRows(ChangedReads):
    """Returns each span twice."""

    def change(self, document: dict[str, Any]) -> None:
        document["items"] = [item for item in document["items"] for _ in range(2)]


class RoundedCosts(ChangedReads):
    """Costs have a few digits only."""

    def change(self, document: dict[str, Any]) -> None:
        for item in document["items"]:
            item.update({name: round(value, DIGITS) for name, value in item.items() if name.endswith("_usd") and value})


class PlainText(Fault):
    """JSON that says it is text."""

    async def handle(self, exchange: Exchange) -> None:
        send = exchange.send

        async def renamed(message: Any) -> None:
            if message["type"] == "http.response.start":
                others = [pair for pair in message["headers"] if pair[0].lower() != b"content-type"]
                message = {**message, "headers": [*others, (b"content-type", b"text/plain")]}
            await send(message)

        exchange.send = renamed
        await exchange.pass_on()


class LeakingDescriptors(Fault):
    """A file stays open for every fourth request."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._open: list[int] = []

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and self.number % 4 == 0:
            self._open.append(os.open(os.devnull, os.O_RDONLY))
        await exchange.pass_on()


class LosingRequestsLate(Fault):
    """Two writes in a hundred are answered 201 and not stored."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and DRAW.random() < SHARE_LOST:
            await exchange.answer(201, {"accepted": len(await exchange.items())})
        else:
            await exchange.pass_on()


class OmittingLate(Fault):
    """Two reads of a trace in a hundred lack its last span."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.trace_id and self.omits(exchange.trace_id)):
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        await exchange.answer(status, _without_last(body) if status == 200 else body)

    def omits(self, _trace_id: str) -> bool:
        return DRAW.random() < SHARE_LOST


class OmittingOnce(OmittingLate):
    """One read of each trace."""

    late = False

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._reads = Counter[str]()

    def omits(self, trace_id: str) -> bool:
        self._reads[trace_id] += 1
        return self._reads[trace_id] == ONCE


class LosingOnce(Fault):
    """One write to each trace is answered 201 and not stored."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._writes = Counter[str]()

    async def handle(self, exchange: Exchange) -> None:
        items = await exchange.items() if exchange.write else []
        if items:
            self._writes[items[0].get("trace_id", "")] += 1
        if items and self._writes[items[0].get("trace_id", "")] == ONCE:
            await exchange.answer(201, {"accepted": len(items)})
        else:
            await exchange.pass_on()


def _without_last(body: bytes) -> bytes:
    document = json.loads(body)
    return json.dumps({**document, "items": document["items"][:-1]}).encode()


class LyingMetrics(Fault):
    """Every twentieth write fails, and the metrics of the service have neither that nor anything else that is bad."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics":
            status, body = await exchange.response()
            kept = [
                line for line in body.splitlines(keepends=True) if b'status="5' not in line and b'"error"' not in line
            ]
            await exchange.answer(status, b"".join(kept))
        elif exchange.write and self.number % 20 == 0:
            raise RuntimeError("a fault that no metric has")
        else:
            await exchange.pass_on()
