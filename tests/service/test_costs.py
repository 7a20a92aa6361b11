"""Costs by time and group."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from service.storage_service import costs as costs_module
from tests.service.harness import Service, StorageDatabase, item, post, running_service
from tests.support.waiting import until

DAY = {"from": "2026-11-20T00:00:00Z", "to": "2026-11-21T00:00:00Z"}


@pytest.fixture(scope="module")
def costs_service(costs: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(costs, tmp_path_factory.mktemp("service"), {}) as running:
        running.wait_until_ready()
        yield running


def insert(database: StorageDatabase, bucket: str, **columns: Any) -> None:
    values = {
        "provider": "openai",
        "model": "gpt-4o",
        "environment": None,
        "user_id": None,
        "request_count": 2,
        "total_cost_usd": "0.00000003",
        "prompt_cost_usd": "0.00000001",
        "completion_cost_usd": "0.00000002",
        "total_tokens": 30,
        **columns,
    }
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    statement = f"INSERT INTO cost_analysis_hourly (bucket, {names}) VALUES (%s, {places})"
    database.execute(statement, bucket, *values.values())


def get_costs(client: httpx.Client, **parameters: str) -> list[dict[str, Any]]:
    answer = client.get("/v1/costs", params=parameters)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_costs_of_the_period_are_returned_oldest_first(costs_service: Service, costs: StorageDatabase) -> None:
    for bucket in ("2026-11-20T23:00:00Z", "2026-11-20T00:00:00Z", "2026-11-19T23:00:00Z", "2026-11-21T00:00:00Z"):
        insert(costs, bucket, user_id="ü 1")
    found = get_costs(costs_service.client(), **DAY)
    assert [cost["bucket"] for cost in found] == ["2026-11-20T00:00:00Z", "2026-11-20T23:00:00Z"]
    assert found[0] == {
        "bucket": "2026-11-20T00:00:00Z",
        "provider": "openai",
        "model": "gpt-4o",
        "environment": None,
        "user_id": "ü 1",
        "request_count": 2,
        "total_cost_usd": 3e-8,
        "prompt_cost_usd": 1e-8,
        "completion_cost_usd": 2e-8,
        "total_tokens": 30,
    }
    assert get_costs(costs_service.client(), bucket="hour", **{**DAY, "to": "2026-11-20T01:00:00+00:00"}) == found[:1]


def test_period_without_costs_returns_an_empty_list(costs_service: Service) -> None:
    assert get_costs(costs_service.client(), **{"from": "2020-01-01T00:00:00Z", "to": "2020-01-02T00:00:00Z"}) == []


def pages(client: httpx.Client, **parameters: Any) -> Iterator[list[dict[str, Any]]]:
    """Follow the cursors of costs to the last page."""
    following: dict[str, Any] = {}
    while True:
        answer = client.get("/v1/costs", params={**parameters, **following})
        assert answer.status_code == 200, answer.text
        yield answer.json()["items"]
        following = {"cursor": answer.json()["next"]}
        if following["cursor"] is None:
            return


def total(costs: list[dict[str, Any]]) -> tuple[int, int, float]:
    """Requests, tokens and dollars."""
    cents = sum(round((cost["total_cost_usd"] or 0) * 1e8) for cost in costs)
    return sum(cost["request_count"] for cost in costs), sum(cost["total_tokens"] or 0 for cost in costs), cents


def test_a_day_of_500_users_is_returned_in_pages(costs_service: Service, costs: StorageDatabase) -> None:
    costs.execute(
        "INSERT INTO cost_analysis_hourly SELECT '2026-10-01T00:00:00Z'::timestamptz + n % 24 * interval '1 hour',"
        " 'p' || n / 12000 % 2, 'm', nullif('e' || n % 3, 'e0'), nullif('u' || n / 24 % 500, 'u7'), 1, 0.5, 0.2, 0.3, 5"
        " FROM generate_series(0, 23999) n"
    )
    period = {"from": "2026-10-01T00:00:00Z", "to": "2026-10-02T00:00:00Z"}
    client = costs_service.client()

    first, second, third = pages(client, **period)  # as a client does that was written for one page

    assert [len(first), len(second), len(third)] == [costs_module.MAX_COSTS, costs_module.MAX_COSTS, 4000]
    assert total(first + second + third)[:2] == (24000, 120_000)
    keys = [tuple(str(cost[name]) for name in list(cost)[:5]) for cost in first + second + third]
    assert len(set(keys)) == 24000
    assert [key[0] for key in keys] == sorted(key[0] for key in keys)
    small = [cost for page in pages(client, **period, bucket="day", limit=301) for cost in page]
    assert small == get_costs(client, **period, bucket="day")
    assert total(small)[:2] == (24000, 120_000)


@pytest.mark.parametrize("groups", ["none", "provider", "model,provider", "user_id", "environment,user_id"])
@pytest.mark.parametrize("bucket", ["hour", "day", "total"])
def test_every_grouping_has_the_same_total(
    costs_service: Service, costs: StorageDatabase, groups: str, bucket: str
) -> None:
    if not get_costs(costs_service.client(), **{"from": "2026-09-01T00:00:00Z", "to": "2026-09-04T00:00:00Z"}):
        costs.execute(
            "INSERT INTO cost_analysis_hourly SELECT '2026-09-01T06:00:00Z'::timestamptz + n * interval '1 hour',"
            " 'p' || n % 2, 'm' || n % 3, nullif('e' || n % 4, 'e0'), nullif('u' || n % 5, 'u0'), 2, 0.25, null, 0.25,"
            " 5 FROM generate_series(0, 59) n"
        )
    period = {"from": "2026-09-01T00:00:00Z", "to": "2026-09-03T17:30:00Z"}
    client = costs_service.client()

    costs_ = get_costs(client, **period, group_by=groups, bucket=bucket)

    assert total(costs_)[:2] == (120, 300)
    names = [] if groups == "none" else sorted(groups.split(","))
    assert sorted({"provider", "model", "environment", "user_id"} & set(costs_[0])) == names
    assert all(cost["prompt_cost_usd"] is None for cost in costs_)
    keys = [(cost["bucket"], *(cost[name] for name in names)) for cost in costs_]
    assert len(set(keys)) == len(keys)
    buckets = {"hour": 60, "day": 3, "total": 1}[bucket]
    assert len({cost["bucket"] for cost in costs_}) == buckets
    assert [
        cost for page in pages(client, **period, group_by=groups, bucket=bucket, limit=3) for cost in page
    ] == costs_


def test_hours_that_the_aggregate_does_not_have_are_computed_from_the_traces(
    costs_service: Service, costs: StorageDatabase
) -> None:
    until(lambda: datetime.now(UTC).minute < 58, "the next hour: this one must not end meanwhile")
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    client = costs_service.client()
    sent = [hour - timedelta(minutes=150), hour - timedelta(minutes=90), hour - timedelta(minutes=30), hour, now]
    answer = post(client, *(item(ts=ts.isoformat(), provider="live", total_cost_usd=0.1) for ts in sent))
    assert answer.status_code == 201, answer.text
    insert(costs, (hour - timedelta(hours=3)).isoformat(), provider="live", request_count=7, total_cost_usd="0.7")

    def read(to: datetime, **parameters: str) -> list[dict[str, Any]]:
        period = {"from": (hour - timedelta(hours=5)).isoformat(), "to": to.isoformat(), "group_by": "provider"}
        return [cost for cost in get_costs(client, **period, **parameters) if cost["provider"] == "live"]

    def requests(costs_: list[dict[str, Any]]) -> dict[int, int]:
        ago = [(hour - datetime.fromisoformat(cost["bucket"])) // timedelta(hours=1) for cost in costs_]
        return dict(zip(ago, (cost["request_count"] for cost in costs_), strict=True))

    assert requests(read(now)) == {3: 7, 2: 1, 1: 1, 0: 2}
    assert requests(read(hour)) == {3: 7, 2: 1, 1: 1}
    (everything,) = read(now, bucket="total")
    assert (everything["request_count"], everything["total_cost_usd"]) == (11, 1.1)
    insert(costs, hour.isoformat(), provider="live", request_count=1)  # a part of this hour, refreshed by hand
    assert requests(read(now))[0] == 2
    costs.execute("DELETE FROM cost_analysis_hourly WHERE provider = 'live'")


@pytest.mark.parametrize(
    "groups", ["", "users", "provider,provider", "provider,none", "provider, model", "provider;model"]
)
def test_unknown_group_is_refused_with_the_known_ones(costs_service: Service, groups: str) -> None:
    answer = costs_service.client().get("/v1/costs", params={**DAY, "group_by": groups})
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["field"] == "group_by"
    assert "provider,model,environment,user_id" in error["reason"]


def test_cursor_of_other_costs_is_refused(costs_service: Service, costs: StorageDatabase) -> None:
    insert(costs, "2026-08-20T00:00:00Z")
    insert(costs, "2026-08-20T01:00:00Z")
    client = costs_service.client()
    period = {"from": "2026-08-20T00:00:00Z", "to": "2026-08-21T00:00:00Z"}
    cursor = client.get("/v1/costs", params={**period, "limit": 1}).json()["next"]
    for change in ({"group_by": "model"}, {"bucket": "day"}, {"to": "2026-08-22T00:00:00Z"}):
        answer = client.get("/v1/costs", params={**period, "cursor": cursor, **change})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "cursor")
        assert "without 'cursor'" in answer.json()["detail"]


def test_the_longest_period_is_answered(costs_service: Service) -> None:
    ends = {"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T23:59:59Z"}
    everything = get_costs(costs_service.client(), **ends, bucket="total", group_by="none")
    assert len(everything) == 1
    by_hour = get_costs(costs_service.client(), **ends, bucket="hour", group_by="none")
    assert total(by_hour) == total(everything)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"from": ""}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-11-20"}, "to"),
        ({"to": "2026-11-19T00:00:00Z"}, "from"),
        ({"to": DAY["from"]}, "from"),
        ({"bucket": "week"}, "bucket"),
        ({"limit": "10001"}, "limit"),
        ({"user": "x"}, "user"),
    ],
)
def test_invalid_parameter_is_named(costs_service: Service, change: dict[str, str], field: str) -> None:
    answer = costs_service.client().get("/v1/costs", params={**DAY, **change})
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("name", ["from", "to"])
def test_offset_whose_plus_is_not_escaped_is_explained(costs_service: Service, name: str) -> None:
    ends = {name: "2026-11-20T00:00:00+00:00", **DAY}
    query = "&".join(f"{key}={'2026-11-20T00:00:00+00:00' if key == name else value}" for key, value in ends.items())
    answer = costs_service.client().get(f"/v1/costs?{query}")
    assert answer.status_code == 400
    assert "write the + of an offset as %2B" in next(e["reason"] for e in answer.json()["errors"] if e["field"] == name)


@pytest.mark.parametrize("missing", ["from", "to"])
def test_period_is_required(costs_service: Service, missing: str) -> None:
    answer = costs_service.client().get("/v1/costs", params={name: DAY[name] for name in DAY if name != missing})
    assert (answer.status_code, answer.json()["errors"]) == (400, [{"field": missing, "reason": "is required"}])


def test_key_needs_the_scope(costs_service: Service, costs: StorageDatabase) -> None:
    writer = costs_service.client(key=costs.add_key(scopes="{write}"))
    assert writer.get("/v1/costs", params=DAY).status_code == 403


def test_costs_on_an_older_schema_get_503_with_the_reason(client: httpx.Client) -> None:
    answer = client.get("/v1/costs", params=DAY)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "costs need schema version 4, and the database is at 3"
