"""The metrics of an instance: which every version has, and which of its manifest an instance lacks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "storage_service_info": ("version", "fleet"),
    "process_start_time_seconds": (),
}
"""Metrics that every instance has, with the labels that must be present."""
SUFFIXES = ("_total", "_bucket")  # of the series of a counter and of a histogram
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? \S+", re.MULTILINE)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def samples(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the labels of each sample in Prometheus' text format, by the name of its series."""
    found: dict[str, list[dict[str, str]]] = {}
    for name, labels in _SAMPLE.findall(text):
        found.setdefault(name, []).append(dict(_LABEL.findall(labels)))
    return found


def bare(name: str) -> str:
    """Return a metric's name without the suffix of a series."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def lacking(exported: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    """Return those metrics of which no series is exported, sorted."""
    found = {bare(series) for series in exported}
    return tuple(sorted(name for name in names if bare(name) not in found))
