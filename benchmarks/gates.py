"""The gate's rates of false alarms and of missed faults, by simulation: no stack, fixed seeds, some minutes.

`python -m benchmarks gates` writes the table in docs/benchmarks-delivery.md.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from observatory.delivery.counts import Counts, RouteCounts, total
from observatory.delivery.environment import ProbeResult, Reading
from observatory.delivery.evidence import RequestEvidence
from observatory.delivery.gates import Evaluation, Gate
from observatory.settings.gate_limits import GateLimits
from proofs.table import write_table

RATES = (1, 5, 20, 100)  # requests a second to the new fleet
RUNS = 40  # deployments of each situation and rate
INTERVAL_S, BAKE_S, BASELINE_S, RECENT_S = 5, 60, 600, 30
SCRAPE_S = 5  # a fault is visible so much later at most
ROUTES = {"POST /v1/traces": 0.2, "GET /v1/traces": 0.3, "GET /v1/traces/{id}": 0.4, "GET /v1/costs": 0.1}
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, math.inf)
SLOW_S = 5.0
MANY, FEW, HALF = 50, 30, 0.5  # where a normal or a simple draw is used instead of an exact or a fast one
BASE_ERRORS, BASE_404 = 0.0005, 0.03  # shares of requests of a version that is well


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a version's requests are like at a moment.

    Attributes:
        errors: share of 5xx.
        statuses: share of each 4xx, by route.
        slow: share of requests that take 5 s.
        factor: of all response times.
        only: the route with the fault; None is all.
    """

    errors: float = BASE_ERRORS
    statuses: dict[str, float] = field(default_factory=lambda: {"404": BASE_404})
    slow: float = 0.0
    factor: float = 1.0
    only: str | None = None


WELL = Traffic()
Course = Callable[[float], Traffic]  # by seconds since the shift


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One kind of deployment.

    Attributes:
        name: of it.
        new: the new version's requests.
        old: the old fleet's meanwhile.
        before: the old version's requests in the last seconds before the shift.
        canary: whether the old fleet has four fifths of the traffic; otherwise none, as after blue-green's shift.
        bursty: whether requests come in bursts.
        outage: seconds during which the database is down.
        checks: seconds during which the old fleet fails its health checks.
    """

    name: str
    new: Course = lambda _at: WELL
    old: Course = lambda _at: WELL
    before: Traffic = WELL
    canary: bool = True
    bursty: bool = False
    outage: tuple[float, float] = (0.0, 0.0)
    checks: tuple[float, float] = (0.0, 0.0)


def bad(**changes: object) -> Course:
    """Return the course of a version with a fault from the first request."""
    return lambda _at: Traffic(**changes)  # type: ignore[arg-type]


def during(begin: float, end: float, traffic: Traffic) -> Course:
    """Return a course with a fault for some seconds."""
    return lambda at: traffic if begin <= at < end else WELL


def drift(at: float) -> Traffic:
    """Return errors and response times that grow with the time, as under a rising load."""
    return Traffic(errors=BASE_ERRORS + 0.03 * at / BAKE_S, factor=1 + 3 * at / BAKE_S)


STALLS, STALLED = ((10, 12), (40, 42)), Traffic(slow=0.5)


def stalls(at: float) -> Traffic:
    """Return slow requests in two short stalls of the machine."""
    return STALLED if any(begin <= at < end for begin, end in STALLS) else WELL


def bad_bad_good(at: float) -> Traffic:
    """Return a fault in two of three evaluations."""
    return Traffic(errors=0.3) if at % (3 * INTERVAL_S) < 2 * INTERVAL_S else WELL


ILL, BUSY, SLOW = Traffic(errors=0.3, factor=20.0), Traffic(factor=10.0), Traffic(factor=30.0)
GOOD = (
    Situation(name="equal version, canary"),
    Situation(name="equal version, blue-green", canary=False),
    Situation(name="equal version, bursts", bursty=True),
    Situation(name="twice the median, not over 0.1 s", new=bad(factor=2.0)),
    Situation(name="both fleets ill for 20 s", new=during(15, 35, ILL), old=during(15, 35, ILL)),
    Situation(name="both fleets drift", new=drift, old=drift),
    Situation(
        name="the database slow since shortly before the shift, blue-green",
        canary=False,
        before=SLOW,
        new=lambda _at: SLOW,
    ),
    Situation(name="every core busy for 8 s, blue-green", canary=False, new=during(13, 21, BUSY)),
    Situation(name="database down for 15 s", new=during(20, 35, ILL), old=during(20, 35, ILL), outage=(22, 95)),
    Situation(name="half of the requests slow for 2 s, twice, blue-green", canary=False, new=stalls),
    Situation(name="pgBouncer away for 4 s, blue-green", canary=False, new=during(20, 24, ILL), checks=(20, 25)),
)
BAD = (
    Situation(name="50 % errors", new=bad(errors=0.5)),
    Situation(name="10 % errors, blue-green", new=bad(errors=0.1), canary=False),
    Situation(name="6 % errors", new=bad(errors=0.06)),
    Situation(name="5 % of writes fail", new=bad(errors=0.05, only="POST /v1/traces")),
    Situation(name="2 % errors", new=bad(errors=0.02)),
    Situation(name="404 for every stored trace", new=bad(statuses={"404": 0.95}, only="GET /v1/traces/{id}")),
    Situation(name="401 for half", new=bad(statuses={"404": BASE_404, "401": 0.5})),
    Situation(name="401 for 5 %, blue-green", new=bad(statuses={"404": BASE_404, "401": 0.05}), canary=False),
    Situation(name="4.5 % of requests 5 s slower", new=bad(slow=0.045), canary=False),
    Situation(name="reads from 8 to 400 ms, blue-green", new=bad(factor=50.0), canary=False),
    Situation(name="bad, bad, good for ever", new=bad_bad_good),
)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The result of one situation at one rate: deployments by verdict, and seconds to the decision."""

    situation: str
    rate: int
    rolled_back: float
    unknown: float
    seconds: float | None


def measure(runs: int = RUNS) -> list[Rate]:
    """Simulate every situation at every rate."""
    return [_rate(situation, rate, runs) for situation in (*GOOD, *BAD) for rate in RATES]


def _rate(situation: Situation, rate: int, runs: int) -> Rate:
    ends = [deployed(situation, rate, random.Random(f"{situation.name} {rate} {run}")) for run in range(runs)]  # noqa: S311
    failed = [at for verdict, at in ends if verdict == "failed"]
    return Rate(
        situation=situation.name,
        rate=rate,
        rolled_back=len(failed) / runs,
        unknown=sum(verdict == "unknown" for verdict, _ in ends) / runs,
        seconds=sorted(failed)[int(0.95 * (len(failed) - 1) + 0.5)] if failed else None,
    )


def deployed(situation: Situation, rate: int, draw: random.Random) -> tuple[str, float]:
    """Return the verdict at the end of a bake of `BAKE_S`, and when a failed one was given."""
    baseline = _requests(situation.before, 5 * rate * RECENT_S, draw)
    recent, baseline = baseline, total([baseline, _requests(WELL, 5 * rate * (BASELINE_S - RECENT_S), draw)])
    gate = Gate(limits=GateLimits(), evidence=RequestEvidence(GateLimits(), baseline, recent))
    new: Counts = {}
    old: Counts = {}
    failed_checks, passed, at = 0.0, 0, 0
    gate.begin_step(_reading(new), _reading(old))
    while passed < BAKE_S / INTERVAL_S and at < 2 * BAKE_S + GateLimits().deadline_s:
        seconds = range(at, at + INTERVAL_S)
        rates = [(draw.choice((0.0, 0.0, 0.0, 4.0)) if situation.bursty else 1.0) * rate for _ in seconds]
        new = total([new, *_drawn(situation.new, seconds, rates, draw)])
        if situation.canary:
            old = total([old, *_drawn(situation.old, seconds, [4 * each for each in rates], draw)])
        failed_checks += sum(situation.checks[0] <= second < situation.checks[1] for second in seconds)
        at += INTERVAL_S
        down = situation.outage[0] <= at < situation.outage[1]
        verdict = gate.evaluate(
            Evaluation(
                new=_reading(new),
                old=_reading(old, failed_checks),
                probes=ProbeResult(attempts=8),
                outages=("the database is down",) if down else (),
            )
        )
        if verdict.result == "failed":
            return "failed", at + SCRAPE_S
        passed += verdict.result == "passed"
    return ("passed" if passed >= BAKE_S / INTERVAL_S else "unknown"), at


def _reading(counts: Counts, failed_checks: float = 0.0) -> Reading:
    return Reading(counts=counts, failed_checks=failed_checks, saturation=0.2, memory_bytes=1e8)


def _drawn(course: Course, seconds: range, rates: list[float], draw: random.Random) -> Iterator[Counts]:
    """Draw the requests of some seconds; equal ones together, which is faster."""
    paired = zip(map(course, seconds), rates, strict=True)
    for traffic, group in itertools.groupby(sorted(paired, key=lambda each: repr(each[0])), key=lambda each: each[0]):
        yield _requests(traffic, _poisson(sum(rate for _, rate in group), draw), draw)


def _requests(traffic: Traffic, number: int, draw: random.Random) -> Counts:
    """Draw the counts of so many requests."""
    found = {}
    left, share_left = number, 1.0
    for route, share in ROUTES.items():
        count = _binomial(left, share / share_left, draw)
        left, share_left = left - count, share_left - share
        found[route] = _route(traffic if traffic.only in {None, route} else WELL, count, draw)
    return found


def _route(traffic: Traffic, number: int, draw: random.Random) -> RouteCounts:
    errors = _binomial(number, traffic.errors, draw)
    statuses, left = {"500": float(errors)}, number - errors
    for status, share in traffic.statuses.items():
        statuses[status] = float(_binomial(left, share, draw))
        left -= int(statuses[status])
    durations, below = {}, 0
    slow = _binomial(number, traffic.slow, draw)
    fast, before = number - slow, 0.0
    for bound in BOUNDS:
        share = _faster_than(bound / traffic.factor)
        below += _binomial(fast - below, (share - before) / (1 - before) if before < 1 else 0.0, draw)
        before = share
        durations[bound] = float(below + (slow if bound > SLOW_S else 0))
    return RouteCounts(statuses={"200": float(left), **statuses}, durations=durations)


def _faster_than(seconds: float) -> float:
    """Return the share of requests below a time: log-normal, median 8 ms, 99th percentile 40 ms."""
    if seconds == math.inf:
        return 1.0
    return statistics.NormalDist(math.log(0.008), 0.69).cdf(math.log(seconds))


def _poisson(mean: float, draw: random.Random) -> int:
    if mean > MANY:
        return max(0, round(draw.gauss(mean, math.sqrt(mean))))
    count, product, least = 0, draw.random(), math.exp(-mean)
    while product > least:
        count, product = count + 1, product * draw.random()
    return count


def _binomial(number: int, share: float, draw: random.Random) -> int:
    share = min(max(share, 0.0), 1.0)
    if number * share > MANY and number * (1 - share) > MANY:
        return min(number, max(0, round(draw.gauss(number * share, math.sqrt(number * share * (1 - share))))))
    if share > HALF:
        return number - _binomial(number, 1 - share, draw)
    if number * share > MANY or number < FEW:
        return sum(draw.random() < share for _ in range(number))
    return min(number, _poisson_of_rare(number, share, draw))


def _poisson_of_rare(number: int, share: float, draw: random.Random) -> int:
    """Draw the number of rare events by the gaps between them."""
    if share <= 0:
        return 0
    count, at, scale = 0, 0.0, math.log1p(-share)
    while True:
        at += math.floor(math.log(1 - draw.random()) / scale) + 1
        if at > number:
            return count
        count += 1


def write(runs: int = RUNS) -> None:
    """Measure, and write the table on the page."""
    measured = measure(runs)
    rows = [
        (situation.name, *(_cell(found) for found in measured if found.situation == situation.name))
        for situation in (*GOOD, *BAD)
    ]
    write_table(
        "gates",
        (f"new version, {runs} deployments at each rate", *(f"{rate} requests a second" for rate in RATES)),
        rows,
    )


def _cell(found: Rate) -> str:
    unknown = f", {found.unknown:.0%} unknown" if found.unknown else ""
    seconds = f" in {found.seconds:.0f} s" if found.seconds is not None else ""
    return f"{found.rolled_back:.1%}{seconds}{unknown}"
