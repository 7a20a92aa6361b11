"""Every event of a deployment has a line of text."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.documents.event_text import event_phase, event_text
from observatory.progress import Phase

SAMPLE = {"requests": 412.3, "error_ratio": 0.001, "p95_s": 0.0123, "saturation": 0.1, "restarts": 0}
STEP = {"step": 1, "steps": 3, "weights": {"blue": 80, "green": 20}, "bake_s": 30.0, "baked_s": 10.0}
PLACE, LEFT = "step 1 of 3 (blue 80 %, green 20 %)", "20 s left in this step, 80 s in all"
FINDINGS = [
    {"kind": "errors", "name": "5xx of GET /v1/traces", "decision": "passed", "value": 0.004, "limit": 0.01},
    {"kind": "slow", "name": "over 0.1 s of GET /v1/traces", "decision": "passed", "value": 0.0, "limit": 0.01},
    {"kind": "requests", "name": "requests", "decision": "passed", "value": 412.0, "limit": 50},
    {"kind": "alerts", "name": "alerts", "decision": "passed"},
]


@pytest.mark.parametrize(
    ("event", "details", "text"),
    [
        (
            "start",
            {"version": "v0.2.0", "target": "green", "strategy": "canary"},
            "deployment of v0.2.0 to green started (canary)",
        ),
        ("install", {"version": "v0.2.0", "fleet": "green"}, "installing v0.2.0 on green"),
        ("install", {"version": "v0.2.0", "fleet": "blue", "instances": ["blue-1"]}, "installing v0.2.0 on blue-1"),
        ("shift", {"weights": {"blue": 95, "green": 5}}, "traffic weights: blue 95 %, green 5 %"),
        (
            "gate",
            {"verdict": "passed", "reasons": [], "new": SAMPLE, "old": {**SAMPLE, "p95_s": None}},
            "gate passed: new 412 requests, 0.10 % errors, p95 12 ms; old 412 requests, 0.10 % errors",
        ),
        (
            "gate",
            {"verdict": "passed", "reasons": [], "findings": FINDINGS, **STEP},
            f"gate passed: {PLACE}; 5xx of GET /v1/traces 0.40 % (limit 1.00 %); requests 412 (at least 50); {LEFT}",
        ),
        (
            "gate",
            {"verdict": "unknown", "reasons": ["3 requests, at least 50 are required"], **STEP, "request": "pause"},
            f"gate unknown: {PLACE}; 3 requests, at least 50 are required; paused, {LEFT}",
        ),
        (
            "shift",
            {"weights": {"blue": 80, "green": 20}, "step": 1, "steps": 3},
            "traffic weights: step 1 of 3 (blue 80 %, green 20 %)",
        ),
        ("gate", {"verdict": "failed", "reasons": ["p95 high", "1 restart"]}, "gate failed: p95 high; 1 restart"),
        (
            "not-audited",
            {"where": "table", "reason": "down", "deployment": "d"},
            "not-audited: where table, reason down",
        ),
        ("schema", {"deployment": "d"}, "schema"),
    ],
)
def test_an_event_is_one_line_of_text(event: str, details: dict[str, Any], text: str) -> None:
    assert event_text(event, details) == text


@pytest.mark.parametrize(
    ("event", "details", "phase"),
    [
        ("gate", {"verdict": "passed"}, Phase.DONE),
        ("gate", {"verdict": "failed"}, Phase.FAILED),
        ("gate", {"verdict": "unknown"}, Phase.UNKNOWN),
        ("tests-failed", {}, Phase.FAILED),
        ("rollback", {}, Phase.WARNED),
        ("rolled-back", {}, Phase.WARNED),
        ("escalate", {}, Phase.FAILED),
        ("shift", {}, Phase.DONE),
        ("promoted", {}, Phase.DONE),
    ],
)
def test_what_failed_is_not_done(event: str, details: dict[str, Any], phase: Phase) -> None:
    assert event_phase(event, details) is phase
