"""The first traces of a new stack, against a service that answers as the real one does on a busy machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory.operations import demonstration
from observatory.operations.demonstration import DemonstrationError, demonstrate
from tests.support.certificates import monitoring_certificate

COUNT = 450  # more than a page of the list


class BusyService:
    """Answers the first requests of each kind with a status of its own, and stores what it accepts."""

    def __init__(self, status: int, times: int, *, unlisted: int = 0) -> None:
        self.status, self.times, self.unlisted = status, times, unlisted
        self.refused: Counter[str] = Counter()
        self.stored: dict[str, dict[str, Any]] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.refused[request.method] < self.times:
            self.refused[request.method] += 1
            return httpx.Response(self.status, headers={"Retry-After": "1"}, json={"detail": "busy"})
        if request.method == "POST":
            items = json.loads(request.content)["items"]
            self.stored |= {each["trace_id"]: each for each in items}
            return httpx.Response(201, json={"accepted": len(items)})
        headers, name = {"X-Observatory-Fleet": "blue"}, request.url.path.rpartition("/")[2]
        if name != "traces":
            return httpx.Response(200, headers=headers, json={"items": [self.stored[name]]})
        begin, limit = int(request.url.params.get("cursor", 0)), int(request.url.params["limit"])
        listed = list(self.stored.values())[self.unlisted :]
        more = str(begin + limit) if begin + limit < len(listed) else None
        return httpx.Response(200, headers=headers, json={"items": listed[begin : begin + limit], "next": more})


@pytest.fixture
def ca_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(demonstration, "PAUSE_S", 0.01)
    return str(monitoring_certificate(tmp_path).authority)


def send(service: Callable[[httpx.Request], httpx.Response], monkeypatch: pytest.MonkeyPatch, ca_file: str) -> int:
    transport = httpx.MockTransport(service)
    monkeypatch.setattr(httpx, "AsyncClient", partial(httpx.AsyncClient, transport=transport))
    return demonstrate("https://127.0.0.1", "key", ca_file=ca_file, count=COUNT).read_back


@pytest.mark.parametrize("status", [503, 504])
def test_a_busy_moment_of_the_service_does_not_fail_an_up(
    status: int, monkeypatch: pytest.MonkeyPatch, ca_file: str
) -> None:
    service = BusyService(status, times=3)
    assert send(service, monkeypatch, ca_file) == len(service.stored) == COUNT
    assert service.refused == {"POST": 3, "GET": 3}


def test_what_the_list_lacks_is_read_by_its_id(monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    assert send(BusyService(503, times=0, unlisted=COUNT - 10), monkeypatch, ca_file) == COUNT


def test_a_trace_that_was_acknowledged_and_not_stored_is_named(monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    def forgets(request: httpx.Request) -> httpx.Response:
        answer = service(request)
        return answer if request.method == "POST" else httpx.Response(200, json={"items": [], "next": None})

    service = BusyService(503, times=0)
    with pytest.raises(DemonstrationError, match=r"trace \w+ cannot be read: HTTP status 200"):
        send(forgets, monkeypatch, ca_file)


def test_a_service_that_stays_unavailable_is_named(monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    monkeypatch.setattr(demonstration, "AGAIN_S", 0.05)
    with pytest.raises(DemonstrationError, match=r"POST /v1/traces answered 503: .*busy"):
        send(BusyService(503, times=1_000_000), monkeypatch, ca_file)


def test_another_error_fails_at_once(monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    service = BusyService(500, times=1)
    with pytest.raises(DemonstrationError, match="POST /v1/traces answered 500"):
        send(service, monkeypatch, ca_file)
    assert service.refused == {"POST": 1}
