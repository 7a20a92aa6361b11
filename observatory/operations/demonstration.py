"""The first traces of a new stack: written and read through the balancer, to show that it works.

The traces resemble those of a real application (several providers, skewed latencies, some errors). Their user ids and
environment mark them as a demonstration.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.errors import ObservatoryError

if TYPE_CHECKING:
    import httpx

BATCH = 100
READERS = 8
PAGE, PAGES = 250, 40  # of the list of traces; with more traces of others in the last hour, each is read by its id
ENVIRONMENT = "demonstration"
# After these a request is sent again, for so long (docs/service.md): a busy machine has them for a moment.
AGAIN = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
AGAIN_S, PAUSE_S = 60.0, 1.0

# US dollars per thousand prompt and completion tokens: plausible values, not a price list.
MODELS = {
    ("anthropic", "claude-sonnet-4"): (0.003, 0.015),
    ("anthropic", "claude-haiku-3.5"): (0.0008, 0.004),
    ("openai", "gpt-4o"): (0.0025, 0.010),
    ("openai", "gpt-4o-mini"): (0.00015, 0.0006),
    ("google", "gemini-2.5-flash"): (0.0003, 0.0025),
}
QUESTIONS = (
    "Summarise the incident report in three sentences.",
    "Which of these invoices is overdue, and by how many days?",
    "Translate the release notes into German.",
    "Classify the ticket: billing, bug or question?",
    "Write a SQL query for the ten slowest endpoints of last week.",
)


class DemonstrationError(ObservatoryError):
    """The service refused a trace, or did not return one."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """The number of traces written and read, and of reads by the fleet that answered."""

    sent: int
    read_back: int
    answered_by: dict[str, int]


def spans(count: int, *, now: datetime, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` LLM calls of the last hour before `now`, one trace each, as items of `POST /v1/traces`."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(count):
        yield _span(draw, now - timedelta(seconds=draw.uniform(0, 3600)))


def _span(draw: random.Random, ts: datetime) -> dict[str, Any]:
    provider, model = draw.choices(list(MODELS), weights=(5, 3, 4, 6, 2))[0]
    prompt_price, completion_price = MODELS[provider, model]
    prompt, completion = draw.randint(40, 4000), draw.randint(5, 900)
    duration = int(draw.lognormvariate(6.6, 0.7))
    failed = draw.random() < 0.02  # noqa: PLR2004 - two calls in a hundred fail
    cost = {
        "prompt_cost_usd": round(prompt / 1000 * prompt_price, 8),
        "completion_cost_usd": round(completion / 1000 * completion_price, 8),
    }
    return {
        "ts": ts.isoformat(),
        "trace_id": uuid.UUID(int=draw.getrandbits(128), version=4).hex,
        "span_id": f"{draw.getrandbits(64):016x}",
        "span_name": "chat.completions",
        "span_kind": "client",
        "provider": provider,
        "model": model,
        "input_type": "chat",
        "input_text": draw.choice(QUESTIONS),
        "output_text": None if failed else "Answer of the demonstration.",
        "finish_reason": "error" if failed else "stop",
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **cost,
        "total_cost_usd": round(sum(cost.values()), 8),
        "duration_ms": duration,
        "ttft_ms": duration // 5,
        "status_code": "ERROR" if failed else "OK",
        "error_message": "upstream timed out" if failed else None,
        "user_id": f"demo-user-{draw.randint(1, 40)}",
        "session_id": f"demo-session-{draw.randint(1, 120)}",
        "environment": ENVIRONMENT,
        "tags": ["demonstration"],
    }


def demonstrate(service_url: str, api_key: str, *, ca_file: str, count: int = 1000) -> Demonstration:
    """Write `count` traces through the balancer in batches, then read them: the first batch one by one, then the list.

    The balancer must present a certificate of the authority in `ca_file`.

    Raises:
        DemonstrationError: a batch was refused, or a trace was not read as it was written.
    """
    import httpx  # noqa: PLC0415 - only where it is used

    items = list(spans(count, now=datetime.now(UTC), seed=random.SystemRandom().getrandbits(64)))
    try:
        return asyncio.run(_send_and_read(service_url, api_key, ca_file, items))
    except httpx.HTTPError as error:
        raise DemonstrationError(f"{service_url} does not answer: {type(error).__name__} {error}") from error


async def _send_and_read(
    service_url: str, api_key: str, ca_file: str, items: Sequence[dict[str, Any]]
) -> Demonstration:
    import httpx  # noqa: PLC0415

    trusted = ssl.create_default_context(cafile=ca_file)
    headers = {"Authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=service_url, headers=headers, timeout=30, verify=trusted) as client:
        for start in range(0, len(items), BATCH):
            await _send(client, items[start : start + BATCH])
        answered_by: Counter[str] = Counter()
        await _read_each(client, items[:BATCH], answered_by)
        left = {item["trace_id"]: item for item in items[BATCH:]}
        await _read_list(client, left, answered_by)
        await _read_each(client, list(left.values()), answered_by)
    return Demonstration(sent=len(items), read_back=answered_by.total(), answered_by=dict(answered_by))


async def _answer(send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Return the answer to a request, which is sent again while the service or the balancer has no capacity for it."""
    from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_delay, wait_fixed  # noqa: PLC0415

    def last(state: RetryCallState) -> httpx.Response:
        assert state.outcome is not None  # noqa: S101 - there was an answer
        answer: httpx.Response = state.outcome.result()
        return answer

    attempts = AsyncRetrying(
        retry=retry_if_result(lambda answer: answer.status_code in AGAIN),
        stop=stop_after_delay(AGAIN_S),
        wait=wait_fixed(PAUSE_S),
        retry_error_callback=last,
    )
    return await attempts(send)


async def _send(client: httpx.AsyncClient, batch: Sequence[dict[str, Any]]) -> None:
    answer = await _answer(partial(client.post, "/v1/traces", json={"items": batch}))
    if answer.status_code != HTTPStatus.CREATED or answer.json()["accepted"] != len(batch):
        raise DemonstrationError(f"POST /v1/traces answered {answer.status_code}: {answer.text[:500]}")


async def _read_list(client: httpx.AsyncClient, left: dict[str, dict[str, Any]], answered_by: Counter[str]) -> None:
    """Read the list of traces, the newest first, and remove what it has from `left`, by trace id."""
    query: dict[str, Any] = {"limit": PAGE}
    for _ in range(PAGES):
        answer = await _answer(partial(client.get, "/v1/traces", params=query))
        if answer.status_code != HTTPStatus.OK:
            raise DemonstrationError(f"GET /v1/traces answered {answer.status_code}: {answer.text[:500]}")
        page = answer.json()
        for span in page["items"]:
            if span["span_id"] == left.get(span["trace_id"], {}).get("span_id"):
                del left[span["trace_id"]]
                answered_by[answer.headers["X-Observatory-Fleet"]] += 1
        if not left or page["next"] is None:
            return
        query["cursor"] = page["next"]


async def _read_each(client: httpx.AsyncClient, items: Sequence[dict[str, Any]], answered_by: Counter[str]) -> None:
    waiting = iter(items)
    await asyncio.gather(*(_read(client, waiting, answered_by) for _ in range(READERS)))


async def _read(client: httpx.AsyncClient, waiting: Iterator[dict[str, Any]], answered_by: Counter[str]) -> None:
    for item in waiting:
        answer = await _answer(partial(client.get, f"/v1/traces/{item['trace_id']}"))
        stored = answer.json().get("items", []) if answer.status_code == HTTPStatus.OK else []
        if [span["span_id"] for span in stored] != [item["span_id"]]:
            raise DemonstrationError(f"trace {item['trace_id']} cannot be read: HTTP status {answer.status_code}")
        answered_by[answer.headers["X-Observatory-Fleet"]] += 1
