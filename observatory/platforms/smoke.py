"""The smoke suite: what every version must be able to do, asked as a client asks.

Owns the requests and what must come back. Does not own where they go, nor the removal of what was written, which is
marked for `observatory.database.verification_rows` to find.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import HostsError

if TYPE_CHECKING:
    import httpx

SPANS = 10
MARK = "observatory.verification"  # of rows that nobody pays for: `observatory.database.verification_rows` removes them


def exercise(client: httpx.Client, run: str, *, who: str, version: str) -> None:
    """Write traces, a metric and a log line, read the traces back, and look who answered; a stranger must be refused.

    Args:
        client: knows where, and has a key that may read and write.
        run: id of the rows that are written.
        who: is exercised, for messages.
        version: that must answer.

    Raises:
        HostsError: something of that is not so, or nobody answers.
    """
    import httpx  # noqa: PLC0415 - only where it is used

    try:
        _write_and_read_back(client, run, who, version)
        stranger = client.get("/v1/traces", headers={"Authorization": "Bearer nobody"})
    except httpx.HTTPError as error:
        raise HostsError(f"{who} does not answer at {client.base_url}: {error}") from error
    if stranger.status_code != HTTPStatus.UNAUTHORIZED:
        raise HostsError(f"{who}: a stranger's key was answered {stranger.status_code}, not 401")


def _write_and_read_back(client: httpx.Client, run: str, who: str, version: str) -> None:
    spans = [_span(run, number) for number in range(SPANS)]
    for kind, items in {"traces": spans, "metrics": [_measurement(run)], "logs": [_line(run)]}.items():
        _expect(client.post(f"/v1/{kind}", json={"items": items}), HTTPStatus.CREATED, who, version)
    trace = client.get(f"/v1/traces/{run}")
    _expect(trace, HTTPStatus.OK, who, version)
    if {span["span_id"] for span in trace.json()["items"]} != {span["span_id"] for span in spans}:
        raise HostsError(f"{who}: trace {run} did not come back as it was written")
    found = client.get("/v1/traces", params={"provider": MARK, "limit": 1})
    _expect(found, HTTPStatus.OK, who, version)
    if not found.json()["items"]:
        raise HostsError(f"{who}: no trace is found by its provider")


def _expect(answer: httpx.Response, status: int, who: str, version: str) -> None:
    if answer.status_code != status:
        raise HostsError(f"{who}: {answer.request.url.path} answered {answer.status_code}: {answer.text[:300]}")
    found = answer.headers.get("X-Observatory-Version")
    if found != version:
        raise HostsError(f"{who} answers as {found}, not as {version}")


def _span(run: str, number: int) -> dict[str, Any]:
    return {
        "ts": _now(),
        "trace_id": run,
        "span_id": f"smoke-{number}",
        "span_name": "smoke",
        "provider": MARK,
        "model": MARK,
        "input_type": "text",
        "input_text": "smoke test of a deployment",
        "duration_ms": 1,
        "status_code": "OK",
    }


def _measurement(run: str) -> dict[str, Any]:
    of_whom = {"provider": MARK, "model": MARK, "user_id": run}
    return {"ts": _now(), "metric_name": MARK, "metric_type": "gauge", **of_whom, "value": 0.0}


def _line(run: str) -> dict[str, Any]:
    return {"ts": _now(), "trace_id": run, "log_level": "DEBUG", "message": "smoke test", "provider": MARK}


def _now() -> str:
    return datetime.now(UTC).isoformat()
