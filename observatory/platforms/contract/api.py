"""The HTTP part of the contract: endpoints, headers, keys and metrics of a running instance."""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from observatory.platforms import exported_metrics
from observatory.platforms.contract.requirements import ContractError, Findings
from observatory.waiting import wait_until

if TYPE_CHECKING:
    import httpx

OPTIONAL: Mapping[str, str] = {
    "process_resident_memory_bytes": "a leak of memory is not noticed",
    "storage_http_requests_total": "requests of an instance have no dashboard",
    "storage_http_request_duration_seconds": "the service's own latency has no dashboard and no alert",
    "storage_writes_total": "failed writes have no alert",
    "storage_buffer_size": "a full buffer is not noticed",
    "storage_buffer_capacity": "a full buffer is not noticed",
    "storage_pool_in_use": "a full pool of connections is not noticed",
    "storage_pool_capacity": "a full pool of connections is not noticed",
}
MAX_ITEMS = 1000
SPANS = 5  # of a trace that is read in pages of two
REVOKED_SECONDS = 10.0
MARK = "observatory.verification"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A running instance.

    Attributes:
        client: returns a client with this API key, or without one.
        keys: API keys by what they may do: `both`, `read`, `write`; `revoked` may do both until it is revoked.
        revoke: revokes a key.
        version: of the release.
        fleet: of the instance.
    """

    client: Callable[[str | None], httpx.Client]
    keys: Mapping[str, str]
    revoke: Callable[[str], object]
    version: str
    fleet: str


def span(**fields: Any) -> dict[str, Any]:
    """Return a valid span that is removed with the bench."""
    return {
        "ts": datetime.now(UTC).isoformat(),
        "trace_id": "release-check",
        "span_id": "1",
        "span_name": "check",
        "provider": MARK,
        "model": MARK,
        "input_type": "text",
        "duration_ms": 1,
        "status_code": "OK",
        **fields,
    }


def check_health(findings: Findings, instance: Instance) -> None:
    """Check the endpoints that need no key, and the headers of every response."""
    with instance.client(None) as client:
        for path in ("/health/live", "/health/ready", "/health"):
            with findings.requirement("health", f"GET {path} responds 200 to a request without a key"):
                expect(client.get(path), HTTPStatus.OK)
        with findings.requirement("headers", "every response has X-Observatory-Version and X-Observatory-Fleet"):
            for path in ("/health/live", "/v1/traces", "/v1/nothing"):
                _check_headers(client.get(path), instance)
        with findings.requirement(
            "openapi", "GET /openapi.json responds with the description of the API", optional=True
        ):
            expect(client.get("/openapi.json"), HTTPStatus.OK)


def check_keys(findings: Findings, instance: Instance) -> None:
    """Check which keys may do what."""
    with findings.requirement("keys", "a request without a key, or with an unknown one, gets 401"):
        for key in (None, "invalid", f"obs_{'x' * 43}"):
            with instance.client(key) as client:
                expect(client.get("/v1/traces"), HTTPStatus.UNAUTHORIZED)
                expect(client.post("/v1/traces", json={"items": [span()]}), HTTPStatus.UNAUTHORIZED)
    with findings.requirement("keys", f"a revoked key gets 401 within {REVOKED_SECONDS:g} s"):
        _check_revoked(instance)
    with (
        findings.requirement("keys", "a key without the scope gets 403"),
        instance.client(instance.keys["read"]) as reader,
    ):
        expect(reader.get("/v1/traces"), HTTPStatus.OK)
        for kind in ("traces", "metrics", "logs"):
            expect(reader.post(f"/v1/{kind}", json={"items": []}), HTTPStatus.FORBIDDEN)
        with instance.client(instance.keys["write"]) as writer:
            expect(writer.post("/v1/traces", json={"items": [span()]}), HTTPStatus.CREATED)
            expect(writer.get("/v1/traces"), HTTPStatus.FORBIDDEN)


def _check_revoked(instance: Instance) -> None:
    with instance.client(instance.keys["revoked"]) as client:
        expect(client.get("/v1/traces"), HTTPStatus.OK)  # from now on the instance may have the key in a cache
        instance.revoke(instance.keys["revoked"])
        if not wait_until(lambda: client.get("/v1/traces").status_code != HTTPStatus.OK, REVOKED_SECONDS):
            raise ContractError(f"GET /v1/traces responded 200 {REVOKED_SECONDS:g} s after the key was revoked")
        expect(client.get("/v1/traces"), HTTPStatus.UNAUTHORIZED)


def check_writes(findings: Findings, instance: Instance) -> None:
    """Check what is refused, and what may be optional in a write."""
    wrong: dict[str, tuple[HTTPStatus, dict[str, Any]]] = {
        "a body that is not JSON gets 400": (
            HTTPStatus.BAD_REQUEST, {"content": b'{"items": [', "headers": {"Content-Type": "application/json"}},
        ),
        "an item without a required field gets 400": (HTTPStatus.BAD_REQUEST, {"json": {"items": [{"span_id": "1"}]}}),
        "an item from the year 2000 gets 400": (
            HTTPStatus.BAD_REQUEST, {"json": {"items": [span(ts="2000-01-01T00:00:00Z")]}},
        ),
    }  # fmt: skip
    with instance.client(instance.keys["both"]) as client:
        for text, (status, arguments) in wrong.items():
            with findings.requirement("writes", text):
                expect(client.post("/v1/traces", **arguments), status)
        with findings.requirement("limits", f"a write of more than {MAX_ITEMS} items gets 413", optional=True):
            items = [span(span_id=str(number)) for number in range(MAX_ITEMS + 1)]
            expect(client.post("/v1/traces", json={"items": items}), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        with findings.requirement("writes", "a write may be compressed by gzip", optional=True):
            content = gzip.compress(json.dumps({"items": [span(span_id="gzip")]}).encode())
            headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
            expect(client.post("/v1/traces", content=content, headers=headers), HTTPStatus.CREATED)
        with findings.requirement("errors", "an error is application/problem+json", optional=True):
            answer = client.post("/v1/traces", json={"items": [{}]})
            if answer.headers.get("content-type") != "application/problem+json":
                raise ContractError(f"an error has the content type {answer.headers.get('content-type')}")


def check_pages(findings: Findings, instance: Instance) -> None:
    """Check that the pages of a trace have each span once, and come to an end."""
    trace = f"release-check-{secrets.token_hex(8)}"
    names = [str(number) for number in range(SPANS)]
    with instance.client(instance.keys["both"]) as client:
        with findings.requirement("api", "all pages of a trace together have each span once, and the last one ends"):
            items = [span(trace_id=trace, span_id=name) for name in names]
            expect(client.post("/v1/traces", json={"items": items}), HTTPStatus.CREATED)
            found, cursors = _read_pages(client, trace)
            if sorted(found) != names:
                raise ContractError(f"the pages of {SPANS} spans have the spans {', '.join(found)}, with `limit=2`")
        if findings.met_last() and cursors:
            with findings.requirement("api", "a cursor that is none gets 400"):
                expect(client.get(f"/v1/traces/{trace}", params={"cursor": "none"}), HTTPStatus.BAD_REQUEST)


def _read_pages(client: httpx.Client, trace: str) -> tuple[list[str], list[str]]:
    """Return the spans of all pages of a trace, and the cursors; a service without pages has all in one."""
    found: list[str] = []
    cursors: list[str] = []
    for _ in range(SPANS + 1):
        parameters = {"limit": "2", **({"cursor": cursors[-1]} if cursors else {})}
        answer = client.get(f"/v1/traces/{trace}", params=parameters)
        expect(answer, HTTPStatus.OK)
        page = answer.json()
        found += [each["span_id"] for each in page["items"]]
        if page["next"] is None:
            return found, cursors
        cursors.append(page["next"])
    raise ContractError(f"the pages of {SPANS} spans have no end: `next` is still not null after {SPANS + 1} pages")


def check_metrics(findings: Findings, instance: Instance, promised: tuple[str, ...] | None) -> None:
    """Check the metrics that every instance has, those of the manifest, and name the optional ones that it lacks."""
    samples: dict[str, list[dict[str, str]]] = {}
    with (
        findings.requirement("metrics", "GET /metrics responds in Prometheus' text format"),
        instance.client(None) as client,
    ):
        answer = client.get("/metrics")
        expect(answer, HTTPStatus.OK)
        samples = exported_metrics.samples(answer.text)
        if not samples:
            raise ContractError("/metrics has no sample")
    for name, labels in exported_metrics.REQUIRED.items():
        labelled = f"{name}{{{','.join(labels)}}}" if labels else name
        with findings.requirement("metrics", f"{labelled} is exported"):
            _check_metric(samples, name, labels, instance)
    for name in promised or ():
        with findings.requirement("metrics", f"{name}, which the manifest names, is exported"):
            _check_exported(samples, name)
    for name, consequence in OPTIONAL.items():
        if name not in (promised or ()):
            with findings.requirement("metrics", f"{name} is exported", optional=True):
                _check_exported(samples, name, f"; without it {consequence}")


def expect(answer: httpx.Response, status: int) -> None:
    """Check the status of a response.

    Raises:
        ContractError: it is another one.
    """
    if answer.status_code != status:
        request = f"{answer.request.method} {answer.request.url.path}"
        raise ContractError(f"{request} responded {answer.status_code}, expected {int(status)}: {answer.text[:200]}")


def _check_headers(answer: httpx.Response, instance: Instance) -> None:
    for header, expected in (("X-Observatory-Version", instance.version), ("X-Observatory-Fleet", instance.fleet)):
        if (found := answer.headers.get_list(header)) != [expected]:
            has = f"is {', '.join(found)}" if found else "is missing"
            raise ContractError(f"{answer.request.url.path}: the header {header} {has}, expected {expected}")


def _check_exported(samples: Mapping[str, list[dict[str, str]]], name: str, consequence: str = "") -> None:
    if exported_metrics.lacking(samples, (name,)):
        raise ContractError(f"/metrics has no sample of {name}{consequence}")


def _check_metric(
    samples: Mapping[str, list[dict[str, str]]], name: str, labels: tuple[str, ...], instance: Instance
) -> None:
    _check_exported(samples, name)
    expected = {"version": instance.version, "fleet": instance.fleet}
    for label in labels:
        if (found := samples[name][0].get(label)) != expected[label]:
            raise ContractError(f"{name} has {label}={found!r}, expected {expected[label]!r}")
