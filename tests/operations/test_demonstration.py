"""The first traces of a new stack, against a service that answers as the real one does on a busy machine."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory.operations import demonstration
from observatory.operations.demonstration import DemonstrationError, demonstrate
from tests.support.certificates import monitoring_certificate


class BusyService:
    """Answers the first requests of each kind with a status of its own, and stores what it accepts."""

    def __init__(self, status: int, times: int) -> None:
        self.status, self.times = status, times
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
        found = self.stored[request.url.path.rpartition("/")[2]]
        return httpx.Response(200, headers={"X-Observatory-Fleet": "blue"}, json={"items": [found]})


@pytest.fixture
def ca_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(demonstration, "PAUSE_S", 0.01)
    return str(monitoring_certificate(tmp_path).authority)


def send(service: BusyService, monkeypatch: pytest.MonkeyPatch, ca_file: str) -> int:
    transport = httpx.MockTransport(service)
    monkeypatch.setattr(httpx, "AsyncClient", partial(httpx.AsyncClient, transport=transport))
    return demonstrate("https://127.0.0.1", "key", ca_file=ca_file, count=150).read_back


@pytest.mark.parametrize("status", [503, 504])
def test_a_busy_moment_of_the_service_does_not_fail_an_up(
    status: int, monkeypatch: pytest.MonkeyPatch, ca_file: str
) -> None:
    service = BusyService(status, times=3)
    assert send(service, monkeypatch, ca_file) == len(service.stored) == 150
    assert service.refused == {"POST": 3, "GET": 3}


def test_a_service_that_stays_unavailable_is_named(monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    monkeypatch.setattr(demonstration, "AGAIN_S", 0.05)
    with pytest.raises(DemonstrationError, match=r"POST /v1/traces answered 503: .*busy"):
        send(BusyService(503, times=1_000_000), monkeypatch, ca_file)


def test_another_error_fails_at_once(monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    service = BusyService(500, times=1)
    with pytest.raises(DemonstrationError, match="POST /v1/traces answered 500"):
        send(service, monkeypatch, ca_file)
    assert service.refused == {"POST": 1}
