"""Headers, metrics, logs and the OpenAPI document."""

import secrets
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.storage_service.operations import REFERENCE
from service.storage_service.release import RELEASE
from tests.service.conftest import StartService
from tests.service.harness import Service, StorageDatabase, item, post, storage_database
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE_S


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/live", 200),
        ("GET", "/v1/traces", 200),
        ("GET", "/v1/traces?limit=0", 400),
        ("GET", "/nothing", 404),
        ("PUT", "/v1/traces", 405),
        ("POST", "/v1/traces", 415),
    ],
)
def test_every_response_has_version_and_fleet_headers(service: Service, method: str, path: str, status: int) -> None:
    answer = service.client().request(method, path)
    assert answer.status_code == status
    assert answer.headers.get_list("x-observatory-version") == ["v0.0.0-dev"]
    assert answer.headers.get_list("x-observatory-fleet") == ["blue"]
    assert "server" not in answer.headers


def test_instance_has_every_metric_of_its_manifest_when_it_is_ready(
    database: StorageDatabase, start: StartService
) -> None:
    text = httpx.get(f"http://127.0.0.1:{start(database).port}/metrics").text
    samples = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert [name for name in RELEASE.metrics if not {name, f"{name}_bucket"} & samples] == []


def test_response_to_an_invalid_request_has_version_and_fleet_headers(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        answer = connection.recv(4096).lower()
    assert answer.startswith(b"http/1.1 400")
    assert b"x-observatory-version: v0.0.0-dev" in answer
    assert b"x-observatory-fleet: blue" in answer


def test_writes_are_counted_by_outcome(postgres: PostgresServer, start: StartService, tmp_path: Path) -> None:
    with storage_database(postgres, tmp_path) as database:
        service = start(database)
        client = service.client()
        assert service.metric('storage_writes_total{status="error"}') == 0
        assert post(client, item(), item()).status_code == 201
        assert post(client, item(duration_ms=-1)).status_code == 400
        database.execute(f"REVOKE INSERT ON llm_traces FROM {database.role}")
        answer = post(client, item())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert service.metric('storage_writes_total{status="success"}') == 1
        assert service.metric('storage_writes_total{status="error"}') == 1
        assert service.metric('storage_items_accepted_total{table="llm_traces"}') == 2
        assert service.metric('storage_write_duration_seconds_count{table="llm_traces"}') == 2
        assert service.metric('storage_write_duration_seconds_bucket{le="+Inf",table="llm_traces"}') == 2
        service.close()


def test_requests_and_queries_are_measured(database: StorageDatabase, start: StartService) -> None:
    service = start(database)
    client = service.client()
    client.get("/v1/traces")
    client.get("/v1/traces/unknown")
    client.get("/v1/nothing/of/the/kind")
    client.request("PROPFIND", "/v1/traces")
    assert service.metric('storage_query_duration_seconds_count{query="traces"}') == 1
    assert service.metric('storage_query_duration_seconds_count{query="trace"}') == 1
    requests = "storage_http_requests_total"
    assert service.metric(f'{requests}{{method="GET",route="/v1/traces",status="200"}}') == 1
    assert service.metric(f'{requests}{{method="GET",route="/v1/traces/{{trace_id}}",status="404"}}') == 1
    assert service.metric(f'{requests}{{method="GET",route="unmatched",status="404"}}') == 1
    assert service.metric(f'{requests}{{method="other",route="/v1/traces",status="405"}}') == 1
    assert service.metric('storage_service_info{fleet="blue",version="v0.0.0-dev"}') == 1


def test_log_is_json_without_prompts_keys_and_passwords(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    prompt = f"prompt-{secrets.token_hex(8)}"
    with storage_database(postgres, tmp_path) as database:
        service = start(database, LOG_LEVEL="DEBUG")
        client = service.client()
        assert post(client, item(input_text=prompt)).status_code == 201
        assert post(client, item(input_text=prompt, duration_ms=-1)).status_code == 400
        database.execute(f"ALTER TABLE llm_traces ADD CONSTRAINT no_secrets CHECK (input_text <> '{prompt}') NOT VALID")
        assert post(client, item(input_text=prompt)).status_code == 400
        database.execute("ALTER TABLE llm_traces DROP CONSTRAINT llm_traces_text_bytes, DROP CONSTRAINT no_secrets")
        database.execute("ALTER TABLE llm_traces ALTER COLUMN input_text TYPE integer USING 1")
        assert post(client, item(input_text=prompt)).status_code == 400
        service.terminate()
        assert service.process.wait(timeout=PATIENCE_S) == 0
        text = service.log_file.read_text(encoding="utf-8")
        for secret in (prompt, database.key, database.password_file.read_text().strip()):
            assert secret not in text
        lines = service.log
    assert {"ts", "level", "logger", "message", "version", "fleet"} <= set.intersection(*(set(line) for line in lines))
    requests = [line for line in lines if line["message"] == "request" and line["route"] == "/v1/traces"]
    assert [line["status"] for line in requests] == [201, 400, 400, 400]
    assert all(line["api_key_id"] for line in requests)
    rejected = [line for line in lines if line["message"] == "the database rejected the values of a request"]
    assert rejected[0]["exception"] == "CheckViolation (SQLSTATE 23514)"
    assert any("tables.py" in frame for frame in rejected[0]["frames"])


def references(node: Any) -> set[str]:
    """Return every `$ref` below a node."""
    if isinstance(node, list):
        return set().union(*map(references, node))
    if isinstance(node, dict):
        here = {node["$ref"]} if "$ref" in node else set()
        return here.union(*map(references, node.values()))
    return set()


def test_openapi_document_is_complete(service: Service) -> None:
    document = httpx.get(f"http://127.0.0.1:{service.port}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "0.0.0-dev"
    assert set(document["paths"]) == {
        *("/v1/traces", "/v1/traces/{trace_id}", "/v1/metrics", "/v1/logs", "/v1/costs"),
        *("/health", "/health/live", "/health/ready", "/metrics"),
    }
    schemas = document["components"]["schemas"]
    assert references(document) <= {REFERENCE.format(model=name) for name in schemas}
    post_traces = document["paths"]["/v1/traces"]["post"]
    assert post_traces["security"] == [{"key": []}]
    assert {"201", "400", "401", "403", "413", "429", "503"} <= set(post_traces["responses"])
    assert [parameter["name"] for parameter in document["paths"]["/v1/traces"]["get"]["parameters"]] == [
        *("cursor", "provider", "model", "limit")
    ]


def test_openapi_states_the_limits_of_an_item(service: Service) -> None:
    document = httpx.get(f"http://127.0.0.1:{service.port}/openapi.json").json()
    name = next(name for name in document["components"]["schemas"] if name.startswith("Trace-Input") or name == "Trace")
    trace = document["components"]["schemas"][name]
    assert trace["additionalProperties"] is False
    assert trace["properties"]["ts"]["format"] == "date-time"
    assert trace["properties"]["provider"]["maxLength"] == 128
    assert trace["properties"]["duration_ms"]["maximum"] == 2**31 - 1
    assert set(trace["required"]) == {
        *("ts", "trace_id", "span_id", "span_name", "provider", "model"),
        *("input_type", "duration_ms", "status_code"),
    }
