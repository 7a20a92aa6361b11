"""The evaluation of a gate as one line: verdict, step, weights, numbers with their limits, and the time left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SHARES = ("errors", "client errors", "slow", "probes", "saturation")  # kinds of findings whose numbers are 0 to 1


def gate_text(details: Mapping[str, Any]) -> str:
    """Return an evaluation as one line.

    For example: `gate passed: step 1 of 2 (blue 80 %, green 20 %); errors 0.20 % (limit 1.00 %); 20 s left`.
    """
    parts = (
        step_text(details),
        *(details.get("reasons") or _findings(details.get("findings") or ())),
        *_fleets(details),
        _time_left(details),
    )
    shown = "; ".join(part for part in parts if part)
    return f"gate {details.get('verdict')}" + (f": {shown}" if shown else "")


def step_text(details: Mapping[str, Any]) -> str:
    """Return the step with the traffic weights in it; empty where the event has neither."""
    step, steps = details.get("step") or 0, details.get("steps") or 0
    number = f"step {step} of {steps}" if 1 <= step <= steps else ""
    weights = weights_text(details.get("weights") or {})
    return f"{number} ({weights})" if number and weights else number or weights


def weights_text(weights: Mapping[str, int]) -> str:
    """Return the traffic weight of each fleet."""
    return ", ".join(f"{fleet} {weight} %" for fleet, weight in weights.items())


def _findings(findings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield each measurement that is not 0, beside its limit."""
    for each in findings:
        if each.get("value"):
            word = "at least" if each.get("kind") == "requests" else "limit"
            limit = f" ({word} {_number(each, 'limit')})" if each.get("limit") is not None else ""
            yield f"{each.get('name')} {_number(each, 'value')}{limit}"


def _number(finding: Mapping[str, Any], name: str) -> str:
    value = float(finding[name])
    return f"{value * 100:.2f} %" if finding.get("kind") in SHARES else f"{value:.4g}"


def _fleets(details: Mapping[str, Any]) -> Iterator[str]:
    for name in ("new", "old"):
        if sample := details.get(name):
            yield f"{name} {_sample(sample)}"


def _sample(sample: Mapping[str, Any]) -> str:
    requests = f"{sample.get('requests') or 0:.0f} requests, {(sample.get('error_ratio') or 0) * 100:.2f} % errors"
    quantiles = ((name, sample.get(f"{name}_s")) for name in ("p50", "p95", "p99"))
    times = [f"{name} {seconds * 1000:.0f} ms" for name, seconds in quantiles if seconds is not None]
    return ", ".join([requests, *times])


def _time_left(details: Mapping[str, Any]) -> str:
    """Return how long this step, and all steps, still take if the gate passes."""
    bake_s = details.get("bake_s")
    if bake_s is None:
        return ""
    paused = "paused, " if details.get("request") == "pause" else ""
    left = max(0.0, bake_s - (details.get("baked_s") or 0.0))
    more = max(0, (details.get("steps") or 0) - (details.get("step") or 0)) * bake_s
    return f"{paused}{left:.0f} s left" + (f" in this step, {left + more:.0f} s in all" if more else "")
