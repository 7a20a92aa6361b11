"""Fuzzing of every endpoint by its OpenAPI document: nothing fails, and every response matches the document."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.service.harness import Service, StorageDatabase, running_service
from tests.support.waiting import PATIENCE_S

OPERATIONS = (
    "POST /v1/traces",
    "POST /v1/metrics",
    "POST /v1/logs",
    "GET /v1/traces",
    "GET /v1/traces/{trace_id}",
    "GET /v1/costs",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
)


CONFIG = {
    "request-timeout": PATIENCE_S,
    "checks": {
        # The document cannot express every rule: times outside the retention, U+0000, bytes instead of characters.
        "positive_data_acceptance": {"enabled": False},
        "negative_data_rejection": {"expected-statuses": ["4XX", "207"]},  # 413 is one; 207 rejects items
    },
    # An invalid parameter can look valid or absent in a URL, e.g. an empty list.
    "operations": [{"include-method": "GET", "checks": {"negative_data_rejection": {"enabled": False}}}],
}
LONGEST_TARGET = 32 * 1024  # bytes
GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


def bring_into_the_present(body: Any) -> None:
    """Give items a recent time, so that they reach the database."""
    for entry in body["items"] if isinstance(body, dict) else ():
        entry["ts"] = datetime.now(UTC).isoformat()


@pytest.fixture(scope="module")
def fuzzed(costs: StorageDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(costs, tmp_path_factory.mktemp("fuzzed"), {}) as service:
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="module")
def document(fuzzed: Service) -> OpenApiSchema:
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_url(
        f"http://127.0.0.1:{fuzzed.port}/openapi.json", config=config, timeout=PATIENCE_S
    )


def test_every_operation_is_fuzzed(document: OpenApiSchema) -> None:
    assert {f"{method.upper()} {path}" for path in document for method in document[path]} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GOOD) for label in OPERATIONS),
        *((label, BAD) for label in OPERATIONS if "/v1/" in label),  # the others have no input
    ],
)
def test_every_response_matches_the_document(
    document: OpenApiSchema, fuzzed: Service, label: str, mode: GenerationMode
) -> None:
    method, path = label.split()
    operation = document[path][method]

    @settings(max_examples=25, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def fuzz(case: schemathesis.Case[Any]) -> None:
        # A target and headers of over 64 KiB end the connection without a response: see docs/service.md.
        assume(len(quote(case.formatted_path)) + len(urlencode(case.query or {}, doseq=True)) < LONGEST_TARGET)
        if mode is GOOD:
            bring_into_the_present(case.body)
        case.call_and_validate(headers={"Authorization": f"Bearer {fuzzed.key}"})

    fuzz()
