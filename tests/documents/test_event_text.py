"""Every event of a deployment has a line of text."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.documents.event_text import event_text

SAMPLE = {"requests": 412.3, "error_ratio": 0.001, "p95_s": 0.0123, "saturation": 0.1, "restarts": 0}


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
            "gate passed: new 412 requests, 0.10% errors, p95 12 ms; old 412 requests, 0.10% errors, p95 -",
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
