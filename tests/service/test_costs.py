"""Costs by the hour."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.storage_service import costs as costs_module
from tests.service.harness import Service, StorageDatabase, running_service

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


def test_too_many_costs_are_rejected_not_truncated(costs_service: Service, costs: StorageDatabase) -> None:
    costs.execute(
        "INSERT INTO cost_analysis_hourly SELECT '2026-10-01T00:00:00Z', 'p', 'm', 'e', n::text, 1, 1, 1, 0, 5"
        " FROM generate_series(1, %s) n",
        costs_module.MAX_COSTS + 1,
    )
    period = {"from": "2026-10-01T00:00:00Z", "to": "2026-10-01T01:00:00Z"}
    answer = costs_service.client().get("/v1/costs", params=period)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "to"
    costs.execute("DELETE FROM cost_analysis_hourly WHERE user_id = '1'")
    assert len(get_costs(costs_service.client(), **period)) == costs_module.MAX_COSTS


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"from": ""}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-11-20"}, "to"),
        ({"to": "2026-11-19T00:00:00Z"}, "from"),
        ({"to": DAY["from"]}, "from"),
        ({"bucket": "day"}, "bucket"),
        ({"user": "x"}, "user"),
    ],
)
def test_invalid_parameter_is_named(costs_service: Service, change: dict[str, str], field: str) -> None:
    answer = costs_service.client().get("/v1/costs", params={**DAY, **change})
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


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
