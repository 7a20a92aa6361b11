"""Faults that a client sees in the data alone: every response looks like success."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from .exchange import App, Exchange, Fault

SHARE_LOST = 0.03
DRAW = random.Random(2)  # noqa: S311 - no secret
BATCH_WITH_DURATIONS = "ttft_ms"  # a field of real spans that the smoke suite does not write


class ForgetfulReads(Fault):
    """404 for every stored trace that this process did not write itself."""

    late = True

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._written: set[str] = set()

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            self._written.update(str(item.get("trace_id")) for item in await exchange.items())
        if exchange.trace_id and exchange.trace_id not in self._written:
            await exchange.answer(404, {"title": "Not Found", "status": 404})
        else:
            await exchange.pass_on()


class MissingTraces(Fault):
    """404 for every stored trace."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.trace_id:
            await exchange.answer(404, {"title": "Not Found", "status": 404})
        else:
            await exchange.pass_on()


class EmptyLists(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.read and exchange.path == "/v1/traces":
            await exchange.answer(200, {"items": [], "next": None, "duplicates": 0})
        else:
            await exchange.pass_on()


class EmptyReadsLate(Fault):
    """200 without a span for every trace."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.read and exchange.path.startswith("/v1/traces"):
            await exchange.answer(200, {"items": [], "next": None, "duplicates": 0})
        else:
            await exchange.pass_on()


class NeverStored(Fault):
    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            await exchange.answer(201, {"accepted": len(await exchange.items())})
        else:
            await exchange.pass_on()


class NeverStoredLate(NeverStored):
    late = True


class InMemory(Fault):
    """A dictionary in place of the database; any key is accepted."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._spans: dict[str, list[dict[str, Any]]] = {}

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.read or exchange.write):
            await exchange.pass_on()
        elif not exchange.header(b"authorization").startswith(b"Bearer ") or b"invalid" in exchange.header(
            b"authorization"
        ):
            await exchange.answer(401, {"title": "Unauthorized", "status": 401})
        elif exchange.write:
            items = await exchange.items()
            for item in items if exchange.path == "/v1/traces" else []:
                self._spans.setdefault(str(item["trace_id"]), []).append({**item, "duplicate": False})
            await exchange.answer(201, {"accepted": len(items)})
        elif exchange.trace_id:
            found = self._spans.get(exchange.trace_id)
            await exchange.answer(200 if found else 404, {"items": found or [], "next": None, "duplicates": 0})
        else:
            newest = [span for spans in self._spans.values() for span in spans][-20:]
            await exchange.answer(200, {"items": newest, "next": None, "duplicates": 0})


class AnyKey(Fault):
    """Every key is taken for the first valid one, unless it cannot be one at all."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._first = b""

    async def handle(self, exchange: Exchange) -> None:
        sent = exchange.header(b"authorization")
        self._first = self._first or sent
        if sent and sent != b"Bearer invalid":
            others = [pair for pair in exchange.scope["headers"] if pair[0] != b"authorization"]
            exchange.scope["headers"] = [*others, (b"authorization", self._first)]
        await exchange.pass_on()


class AnyKeyLate(AnyKey):
    late = True


class WrongCosts(Fault):
    """Costs are twice what was stored."""

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.read and exchange.path == "/v1/costs"):
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        document = json.loads(body)
        for row in document.get("items", []):
            row.update({name: value * 2 for name, value in row.items() if name.endswith("_usd") and value})
        await exchange.answer(status, document)


class WrongStoredCosts(Fault):
    """Costs are stored as ten times what was sent."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and exchange.path == "/v1/traces":
            items = await exchange.items()
            exchange.replace_items(
                [
                    {**item, "total_cost_usd": item["total_cost_usd"] * 10} if item.get("total_cost_usd") else item
                    for item in items
                ]
            )
        await exchange.pass_on()


class TruncatedPages(Fault):
    """Half of each page, which claims to be the last."""

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.read and exchange.path.startswith("/v1/traces")):
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        document = json.loads(body)
        if len(document.get("items", [])) > 1:
            document |= {"items": document["items"][: len(document["items"]) // 2], "next": None}
        await exchange.answer(status, document)


class Duplicating(Fault):
    """Each span is stored twice, under another id."""

    async def handle(self, exchange: Exchange) -> None:
        if not (exchange.write and exchange.path == "/v1/traces"):
            await exchange.pass_on()
            return
        items = await exchange.items()
        exchange.replace_items([*items, *({**item, "span_id": f"{item['span_id']}-2"[-64:]} for item in items)][:1000])
        status, body = await exchange.response()
        await exchange.answer(status, {"accepted": len(items)} if status == 201 else body)


class Losing(Fault):
    """Three rows in a hundred are not stored."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if not exchange.write:
            await exchange.pass_on()
            return
        items = await exchange.items()
        kept = [item for item in items if DRAW.random() >= SHARE_LOST]
        if not kept:
            await exchange.answer(201, {"accepted": len(items)})
            return
        exchange.replace_items(kept)
        status, body = await exchange.response()
        await exchange.answer(status, {"accepted": len(items)} if status == 201 else body)


class OtherTrace(Fault):
    """A trace is answered with the one that was read before it: another user's data."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._before: bytes | None = None

    async def handle(self, exchange: Exchange) -> None:
        if not exchange.trace_id:
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        before, self._before = self._before, body if status == 200 else self._before
        await exchange.answer(status, before if status == 200 and before else body)


class OtherTraceLate(OtherTrace):
    late = True


class HtmlLate(Fault):
    """200 with a page for people, as a wrong proxy in front of a service sends it."""

    late = True

    async def handle(self, exchange: Exchange) -> None:
        if exchange.read:
            await exchange.answer(200, b"<html><body>Welcome</body></html>")
        else:
            await exchange.pass_on()


class RejectingKind(Fault):
    """400 for a valid kind of span, which the smoke suite does not write."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and any(BATCH_WITH_DURATIONS in item for item in await exchange.items()):
            errors = [{"item": 0, "field": BATCH_WITH_DURATIONS, "reason": "is not a known field"}]
            await exchange.answer(400, {"title": "Bad Request", "status": 400, "errors": errors})
        else:
            await exchange.pass_on()


class ShortTexts(Fault):
    """Texts are stored without their end."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and exchange.path == "/v1/traces":
            items = await exchange.items()
            exchange.replace_items(
                [{**item, "input_text": item["input_text"][:10]} if item.get("input_text") else item for item in items]
            )
        await exchange.pass_on()


class LoggingSecrets(Fault):
    """Key and prompt of each write are in the log."""

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write:
            sys.stderr.write(f"{exchange.header(b'authorization')!r} {await exchange.items()}\n")
        await exchange.pass_on()
