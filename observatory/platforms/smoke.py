"""The smoke suite: what every version must be able to do, tested through its API.

Owns the requests and the expected answers. Does not own where they go. `observatory.database.verification_rows` finds
the rows that this writes by their mark, and removes them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.delivery.environment import HostsError

if TYPE_CHECKING:
    import httpx

SPANS = 10
MARK = "observatory.verification"  # the provider of these rows: `observatory.database.verification_rows` removes them


def exercise(client: httpx.Client, run: str, *, subject: str, version: str) -> None:
    """Write traces, a metric and a log line, and read the traces; check the version and that a wrong key is refused.

    Args:
        client: has the base URL, and a key that may read and write.
        run: trace id of the rows that are written.
        subject: what is exercised, for messages.
        version: the version that must answer.

    Raises:
        HostsError: a check failed, or there was no answer.
    """
    import httpx  # noqa: PLC0415 - only where it is used

    try:
        _write_and_read(client, run, subject, version)
        refused = client.get("/v1/traces", headers={"Authorization": "Bearer invalid"})
    except httpx.HTTPError as error:
        raise HostsError(f"{subject} does not answer at {client.base_url}: {error}") from error
    if refused.status_code != HTTPStatus.UNAUTHORIZED:
        raise HostsError(f"{subject}: an invalid key was answered {refused.status_code}, expected 401")


def _write_and_read(client: httpx.Client, run: str, subject: str, version: str) -> None:
    spans = [_span(run, number) for number in range(SPANS)]
    for kind, items in {"traces": spans, "metrics": [_measurement(run)], "logs": [_line(run)]}.items():
        _expect(client.post(f"/v1/{kind}", json={"items": items}), HTTPStatus.CREATED, subject, version)
    trace = client.get(f"/v1/traces/{run}")
    _expect(trace, HTTPStatus.OK, subject, version)
    if {span["span_id"] for span in trace.json()["items"]} != {span["span_id"] for span in spans}:
        raise HostsError(f"{subject}: trace {run} was not read as it was written")
    found = client.get("/v1/traces", params={"provider": MARK, "limit": 1})
    _expect(found, HTTPStatus.OK, subject, version)
    if not found.json()["items"]:
        raise HostsError(f"{subject}: a search by provider found no trace")


def _expect(answer: httpx.Response, status: int, subject: str, version: str) -> None:
    if answer.status_code != status:
        raise HostsError(f"{subject}: {answer.request.url.path} answered {answer.status_code}: {answer.text[:300]}")
    found = answer.headers.get("X-Observatory-Version")
    if found != version:
        raise HostsError(f"{subject} answers as {found}, expected {version}")


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
    labels = {"provider": MARK, "model": MARK, "user_id": run}
    return {"ts": _now(), "metric_name": MARK, "metric_type": "gauge", **labels, "value": 0.0}


def _line(run: str) -> dict[str, Any]:
    return {"ts": _now(), "trace_id": run, "log_level": "DEBUG", "message": "smoke test", "provider": MARK}


def _now() -> str:
    return datetime.now(UTC).isoformat()
