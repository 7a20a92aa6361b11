"""The watcher's metrics, which node_exporter reads from a file. Counters continue after a restart of the watcher."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from observatory.runtime import Sandbox, SandboxError
from observatory.scheduling.host_process import METRICS
from observatory.scheduling.scheduler_process import WATCHER

HEARTBEAT = "observatory_watcher_heartbeat_timestamp_seconds"
SUPERVISOR_UP = "observatory_supervisor_up"
SUPERVISOR_RESTARTS = "observatory_supervisor_restarts_total"
SUPERVISOR_DEATH = "observatory_supervisor_last_death_timestamp_seconds"
DAEMON_STARTS = "observatory_daemon_starts_total"
GIVEN_UP = "observatory_daemon_given_up"
RESERVE = "observatory_disk_reserve_bytes"
_SAMPLE = re.compile(r'(\w+)(?:\{\w+="([\w-]+)"\})? ([\d.]+)')


@dataclass(kw_only=True)
class WatchMetrics:
    """The current values.

    Attributes:
        supervisor_up: whether the supervisor answers.
        restarts: of a supervisor that had died.
        death: when the last one had, in seconds since the epoch; 0 for never.
        starts: of daemons that the supervisor had given up, by name.
        given_up: the daemons that it has given up now.
        reserves: bytes that each disk reserve holds, by name.
    """

    supervisor_up: bool = True
    restarts: int = 0
    death: float = 0.0
    starts: dict[str, int] = field(default_factory=dict)
    given_up: tuple[str, ...] = ()
    reserves: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, sandbox: Sandbox) -> Self:
        """Return the metrics with the counters of the last watcher's file."""
        try:
            with sandbox.open_read(f"{METRICS}/{WATCHER}.prom") as file:
                text = file.read().decode(errors="replace")
        except (OSError, SandboxError):
            return cls()
        found = {(name, label): float(value) for name, label, value in _SAMPLE.findall(text)}
        return cls(
            restarts=int(found.get((SUPERVISOR_RESTARTS, ""), 0)),
            death=found.get((SUPERVISOR_DEATH, ""), 0.0),
            starts={label: int(value) for (name, label), value in found.items() if name == DAEMON_STARTS},
        )

    def supervisor_died(self) -> None:
        """Count a supervisor that had died and was started again."""
        self.restarts, self.death = self.restarts + 1, time.time()

    def daemon_started(self, name: str) -> None:
        """Count a start of a daemon that was given up."""
        self.starts[name] = self.starts.get(name, 0) + 1

    def text(self) -> str:
        """Return Prometheus' text format."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _metric(HEARTBEAT, "gauge", "Time of the watcher's last heartbeat.", {"": time.time()})
        yield from _metric(SUPERVISOR_UP, "gauge", "Whether the supervisor answers.", {"": self.supervisor_up})
        what = "Starts of a supervisor that had died or did not answer."
        yield from _metric(SUPERVISOR_RESTARTS, "counter", what, {"": self.restarts})
        what = "When the supervisor last died; 0 for never."
        yield from _metric(SUPERVISOR_DEATH, "gauge", what, {"": self.death})
        what = "Starts of a daemon that the supervisor had given up."
        yield from _metric(DAEMON_STARTS, "counter", what, _labelled("daemon", self.starts))
        what = "A daemon that the supervisor has given up."
        yield from _metric(GIVEN_UP, "gauge", what, _labelled("daemon", dict.fromkeys(self.given_up, 1)))
        yield from _metric(RESERVE, "gauge", "Bytes that a reserve holds back.", _labelled("reserve", self.reserves))


def _labelled(label: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f'{{{label}="{name}"}}': value for name, value in sorted(values.items())}


def _metric(name: str, kind: str, what: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {float(value):.3f}"
