"""Earlier samples of a series as blocks of Prometheus, for rules with a window longer than a proof."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from proofs.alerts.monitored import Monitored

PROMTOOL = ("/usr/bin/promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet")
DATA = PurePosixPath("/srv/data/prometheus")
FILE = "/srv/data/history.om"


def backfill(stack: Monitored, metric: str, labels: dict[str, str], samples: Iterable[tuple[float, float]]) -> None:
    """Write times and values of a series into the stack's Prometheus, which finds the blocks within a minute.

    The labels must be those of the live series, or the samples are another series.
    """
    named = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items() if name != "__name__")
    lines = [f"# TYPE {metric} gauge", *(f"{metric}{{{named}}} {value:g} {at:.3f}" for at, value in samples), "# EOF"]
    stack.sandbox.write_file(FILE, "".join(f"{line}\n" for line in lines))
    try:
        stack.sandbox.run([*PROMTOOL, FILE, str(DATA)])
    finally:
        stack.sandbox.remove_file(FILE)
