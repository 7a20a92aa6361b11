"""What gates evaluate: cumulative counts of requests by route, and one reading of a fleet.

Counts only grow: the source of the metrics hides that a counter started again at 0. A gate subtracts two readings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

Key = TypeVar("Key", str, float)
UNANSWERED = ("client_abort", "server_abort", "timeout", "refused", "fallback")


@dataclass(frozen=True, kw_only=True)
class RouteCounts:
    """Requests of one route, cumulative.

    Attributes:
        statuses: answered requests by their exact HTTP status, such as `404`.
        unanswered: requests without a complete answer of this fleet, by outcome: one of `UNANSWERED`.
        durations: requests by upper bound of the response time in seconds, cumulative as in a histogram of Prometheus;
            the bound `math.inf` has all that were timed.
    """

    statuses: Mapping[str, float] = field(default_factory=dict)
    unanswered: Mapping[str, float] = field(default_factory=dict)
    durations: Mapping[float, float] = field(default_factory=dict)

    @property
    def requests(self) -> float:
        """Number of requests."""
        return sum(self.statuses.values()) + sum(self.unanswered.values())

    @property
    def failures(self) -> float:
        """Requests that were answered 5xx, or not answered."""
        return sum(self.unanswered.values()) + sum(
            count for status, count in self.statuses.items() if status.startswith("5")
        )

    @property
    def timed(self) -> float:
        """Requests with a response time."""
        return self.durations.get(math.inf, 0.0)

    def slower_than(self, seconds: float) -> float:
        """Return the requests that took longer than an upper bound of the histogram; 0 for another number."""
        return max(0.0, self.timed - self.durations.get(seconds, self.timed))

    def quantile(self, share: float) -> float | None:
        """Return the response time that this share of the requests does not exceed, None without a timed request.

        It is interpolated within its bucket; in the last one it is the largest finite bound, as in Prometheus.
        """
        wanted, lower, fewer = share * self.timed, 0.0, 0.0
        for bound, count in sorted(self.durations.items()):
            if count >= wanted and self.timed:
                within = (wanted - fewer) / (count - fewer) if count > fewer else 1.0
                return lower if bound == math.inf else lower + (bound - lower) * within
            lower, fewer = bound, count
        return None


Counts: TypeAlias = Mapping[str, RouteCounts]
"""Requests by route, such as `GET /v1/traces/{id}`."""


def difference(later: Counts, earlier: Counts) -> dict[str, RouteCounts]:
    """Return the requests between two readings of the same fleet."""
    return {route: _combined(found, earlier.get(route, RouteCounts()), -1.0) for route, found in later.items()}


def total(counts: Iterable[Counts]) -> dict[str, RouteCounts]:
    """Return the requests of several counts together, by route."""
    found: dict[str, RouteCounts] = {}
    for each in counts:
        for route, more in each.items():
            found[route] = _combined(found[route], more, 1.0) if route in found else more
    return found


def all_routes(counts: Counts) -> RouteCounts:
    """Return the requests of all routes together."""
    return total({"": each} for each in counts.values()).get("", RouteCounts())


def _combined(first: RouteCounts, second: RouteCounts, sign: float) -> RouteCounts:
    return RouteCounts(
        statuses=_added(first.statuses, second.statuses, sign),
        unanswered=_added(first.unanswered, second.unanswered, sign),
        durations=_added(first.durations, second.durations, sign),
    )


def _added(first: Mapping[Key, float], second: Mapping[Key, float], sign: float) -> dict[Key, float]:
    return {key: max(0.0, first.get(key, 0.0) + sign * second.get(key, 0.0)) for key in {**first, **second}}
