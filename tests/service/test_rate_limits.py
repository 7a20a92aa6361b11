"""Rate limits of keys."""

import time

import httpx
import pytest

from service.storage_service import rate_limits
from service.storage_service.problems import TooManyRequests
from service.storage_service.rate_limits import RateLimiter
from tests.service.conftest import StartService
from tests.service.harness import Service, StorageDatabase, item, post
from tests.support.waiting import until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def allowed(limiter: RateLimiter, key: str, *, limit_rpm: int, tries: int) -> int:
    """Return how many of several concurrent requests are accepted."""
    done = 0
    for _ in range(tries):
        try:
            limiter.take(key, limit_rpm=limit_rpm)
        except TooManyRequests:
            continue
        done += 1
    return done


def test_bucket_holds_the_requests_of_a_minute_and_fills_evenly() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    assert allowed(limiter, "a", limit_rpm=60, tries=100) == 60
    clock.now += 10
    assert allowed(limiter, "a", limit_rpm=60, tries=100) == 10
    clock.now += 3600
    assert allowed(limiter, "a", limit_rpm=60, tries=100) == 60


def test_keys_have_separate_buckets() -> None:
    limiter = RateLimiter(clock=Clock())
    assert allowed(limiter, "a", limit_rpm=2, tries=5) == 2
    assert allowed(limiter, "b", limit_rpm=2, tries=5) == 2


def test_changed_limit_applies_at_once() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    assert allowed(limiter, "a", limit_rpm=60, tries=1) == 1
    assert allowed(limiter, "a", limit_rpm=5, tries=100) == 5
    clock.now += 60
    assert allowed(limiter, "a", limit_rpm=120, tries=1000) == 120


@pytest.mark.parametrize(("limit_rpm", "seconds"), [(1, 60), (7, 9), (60, 1), (6000, 1)])
def test_rejection_has_the_seconds_to_wait(limit_rpm: int, seconds: int) -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    allowed(limiter, "a", limit_rpm=limit_rpm, tries=limit_rpm)
    with pytest.raises(TooManyRequests, match=f"limited to {limit_rpm} requests a minute") as rejected:
        limiter.take("a", limit_rpm=limit_rpm)
    assert rejected.value.headers == {"Retry-After": str(seconds)}
    clock.now += seconds
    assert allowed(limiter, "a", limit_rpm=limit_rpm, tries=1) == 1


def test_buckets_of_idle_keys_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "SWEEP_AT", 3)
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    for number in range(10):
        limiter.take(str(number), limit_rpm=60)
        clock.now += 61
    assert len(limiter._buckets) <= 3


def test_only_the_key_over_its_limit_is_rejected(service: Service, database: StorageDatabase) -> None:
    client, begun = service.client(key=database.add_key(rate_limit_rpm=2)), time.monotonic()
    answers: list[httpx.Response] = []

    def rejected() -> bool:  # a write and a read, one after the other; a busy machine may let a request pass in between
        answers.append(client.get("/v1/traces") if len(answers) % 2 else post(client, item()))
        return [answer.status_code for answer in answers[-2:]] == [429, 429]

    until(rejected, "a write and a read over the limit")
    accepted = [answer for answer in answers if answer.status_code != 429]
    assert [answer.status_code for answer in answers[:2]] == [201, 200]
    assert 2 <= len(accepted) <= 2 + (time.monotonic() - begun) / 30
    for answer in answers[-2:]:
        assert 0 < int(answer.headers["retry-after"]) <= 30  # the requests may have taken some of it
        assert "2 requests a minute" in answer.json()["detail"]
    assert service.client().get("/v1/traces").status_code == 200


def test_limit_applies_to_one_instance(service: Service, database: StorageDatabase, start: StartService) -> None:
    key = database.add_key(rate_limit_rpm=1)
    for instance in (service, start(database)):
        client = instance.client(key=key)
        assert [client.get("/v1/traces").status_code for _ in range(2)] == [200, 429]
