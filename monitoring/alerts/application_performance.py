"""Alerts on the error budget of writes: burn rates over two windows each, as in Google's SRE Workbook, chapter 5.

The long window shows that the failures are significant, the short one that they continue. A ratio of few writes is not
significant: below `MINIMUM_WRITES` in the short window, the number of failed writes is used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from monitoring.alerts import escalation
from monitoring.alerts.commands import logs, query
from monitoring.alerts.scenarios import BRIDGE, gauge, growing, vanishing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

OBJECTIVE = 0.999  # share of successful writes over 30 days
MINIMUM_WRITES = 100
FAILED = 'status="error"'
MINUTE_S = 60
_WRITES = 'storage_writes_total{{stack="test",fleet="{}",instance="one",status="{}"}}'


@dataclass(frozen=True, kw_only=True)
class Burn:
    """A burn rate over a long and a short window.

    Attributes:
        rate: multiple of the rate that uses up the budget in 30 days.
        long: long window.
        short: short window.
        failed: failed writes in the short window that fire the alert where there are too few writes for a ratio.
    """

    rate: float
    long: str
    short: str
    failed: int


FAST = Burn(rate=14.4, long="1h", short="5m", failed=10)  # 2 % of the budget in an hour
SLOW = Burn(rate=6, long="6h", short="30m", failed=30)  # 5 % of the budget in six hours


def _burns(burn: Burn) -> Callable[[Scope], str]:
    """Return an expression for fleets above a burn rate; its value is their failure ratio in the short window."""

    def expression(scope: Scope) -> str:
        def writes(window: str, *matchers: str) -> str:
            return f"sum by (stack, fleet) (increase({scope.select('storage_writes_total', *matchers)}[{window}]))"

        def ratio(window: str) -> str:
            return f"{writes(window, FAILED)} / {writes(window)}"

        limit = f"{burn.rate * (1 - OBJECTIVE):.4f}"
        enough = f"{writes(burn.short)} >= {MINIMUM_WRITES}"
        return (
            f"({ratio(burn.short)} > {limit}\n"
            f"and on (stack, fleet) {ratio(burn.long)} > {limit}\n"
            f"and on (stack, fleet) {enough})\n"
            f"or ({ratio(burn.short)}\n"
            f"and on (stack, fleet) {writes(burn.short, FAILED)} >= {burn.failed}\n"
            f"unless on (stack, fleet) {enough})"
        )

    return expression


def _fleet(fleet: str, *parts: tuple[float, float, int]) -> dict[str, str]:
    """Return the writes of a fleet: for each part the successful and failed ones per sample, and the samples."""
    return {
        _WRITES.format(fleet, "success"): growing(*((success, samples) for success, _, samples in parts)),
        _WRITES.format(fleet, "error"): growing(*((error, samples) for _, error, samples in parts)),
    }


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Makes scenarios of a burn rate; the short window has 5 samples and the long one 60 of `minutes` each."""

    burn: Burn
    minutes: int

    def scenario(
        self,
        name: str,
        *parts: tuple[float, float, int],
        quiet: tuple[int, ...] = (),
        fires: Mapping[int, float] | None = None,
        others: Mapping[str, str] | None = None,
        fleet: str = "blue",
    ) -> Scenario:
        """Return a scenario of the fleet blue; `quiet` and `fires` (with the ratio) are numbers of samples."""
        green = _fleet("green", (10_000, 0, 200))
        return Scenario(
            name=name,
            interval=f"{self.minutes}m",
            series={**_fleet("blue", *parts), **(others or green)},
            quiet=tuple(f"{sample * self.minutes}m" for sample in quiet),
            fires=tuple(
                _firing(f"{sample * self.minutes}m", self.burn, ratio, fleet) for sample, ratio in (fires or {}).items()
            ),
        )


def _scenarios(burn: Burn, *, pending: int, keep: int, minutes: int) -> tuple[Scenario, ...]:
    samples = _Samples(burn=burn, minutes=minutes)
    return (_timing(burn, pending=pending, keep=keep), *_ratios(samples), *_few_writes(samples), *_fleets(samples))


def _ratios(samples: _Samples) -> tuple[Scenario, ...]:
    """Return scenarios in which the ratio of one window is at its limit."""
    limit = samples.burn.rate * (1 - OBJECTIVE) * 10_000  # failures of 10,000 writes
    slightly, above = limit * 1.03, limit * 12.4 * 3
    return (
        samples.scenario(
            "failures are just above the limit", (10_000 - slightly, slightly, 66), fires={65: slightly / 10_000}
        ),
        samples.scenario(
            "the last five samples are at the limit, and the long window is above it",
            *((9_800, 200, 20), (10_000 - limit, limit, 12)),
            quiet=(26, 28, 30),
        ),
        samples.scenario(
            "the long window is at the limit, and the last five samples are above it",
            *((10_000 - limit, 0, 70), (10_000 - limit, limit * 12, 5), (10_000 - limit, 0, 9)),
            quiet=(75, 77, 78),
        ),
        samples.scenario(
            "the long window is just above the limit",
            *((10_000 - limit, 0, 70), (10_000 - limit, limit * 12.4, 5), (10_000 - limit, 0, 9)),
            fires={77: above / ((10_000 - limit) * 5 + above)},
        ),
        samples.scenario(
            "failures before the long window do not count",
            *((10_000 - limit / 2, limit / 2, 115), (10_000 - limit * 2, limit * 2, 5)),
            quiet=(119, 120),
        ),
    )


def _few_writes(samples: _Samples) -> tuple[Scenario, ...]:
    """Return scenarios with about 100 writes, or with about as many failures as count alone."""
    few = samples.burn.failed / 5
    return (
        samples.scenario("100 writes are enough for a ratio", (19, 1, 20), fires={18: 0.05}),
        samples.scenario("99 writes are too few", (18.8, 1, 20), quiet=(18,)),
        samples.scenario("as few failures as count alone", (few, few, 20), fires={18: 0.5}),
        samples.scenario("fewer failures than count alone", (few, few * 0.98, 20), quiet=(18,)),
        samples.scenario("five failures of 80 writes", (15, 1, 20), quiet=(18,)),
        samples.scenario("a ratio of 100 writes needs the long window", (10_000, 0, 60), (14, 6, 20), quiet=(70, 78)),
        samples.scenario("99 writes do not need it", (10_000, 0, 60), (13.8, 6, 20), fires={78: 6 / 19.8}),
    )


def _fleets(samples: _Samples) -> tuple[Scenario, ...]:
    """Return scenarios in which one fleet meets a condition, and the other fleet another one."""
    few = samples.burn.failed / 5
    return (
        samples.scenario(
            "another fleet fails in the long window",
            *((10_000, 0, 70), (9_500, 500, 5)),
            others=_fleet("green", (8_000, 2_000, 65), (10_000, 0, 20)),
            quiet=(73, 74),
        ),
        samples.scenario(
            "another fleet has as many failures as count alone",
            (few, few / 2, 20),
            others=_fleet("green", (few, few, 20)),
            fires={18: 0.5},
            fleet="green",
        ),
    )


def _timing(burn: Burn, *, pending: int, keep: int) -> Scenario:
    """Return a scenario with short samples: failures begin after 25 of them, and the ratio falls at the 80th."""
    step = 5 if pending < MINUTE_S else 30
    begins, ends = 26 * step + pending, 80 * step
    samples = begins // step
    since = min(ends // step - 1, int(burn.short.removesuffix("m")) * MINUTE_S // step)
    first = 100 * (samples - 25) / (100 * samples + 100 * (samples - 25))
    last = 100 * (79 - 25) / (100 * since + 100 * (79 - 25))
    return Scenario(
        name="failures begin and end",
        interval=f"{step}s",
        series={
            _WRITES.format("blue", "success"): "0+100x79 1e9x40",
            _WRITES.format("blue", "error"): "0x25 100+100x100",
        },
        quiet=(f"{begins - step}s", f"{ends + keep}s"),
        fires=(_firing(f"{begins}s", burn, first), _firing(f"{ends + keep - step}s", burn, last)),
    )


def _firing(at: str, burn: Burn, ratio: float, fleet: str = "blue") -> Firing:
    minutes = burn.short.removesuffix("m")
    return Firing(
        at=at,
        labels={"fleet": fleet},
        description=f"Fleet {fleet} failed {ratio * 100:.4g}% of its writes in {minutes} minutes.",
    )


DIAGNOSIS = (
    Step("Check whether StorageDatabaseDown fires. It is then the cause."),
    Step("`log/storage-<fleet>-<n>.log` in the stack's home has the error of each failed write."),
    Step(
        "If only one fleet fails, check its version: compare `observatory status` with the last deployment in "
        "`observatory report`."
    ),
    Step(
        "If both fleets fail, check the database for a full disk, a missing privilege or a lock: `log/` in "
        "the stack's home."
    ),
)
REMEDY = (
    Step(
        "During a deployment the alert starts a rollback. Afterwards: `observatory rollback --method blue-green "
        "--emergency`."
    ),
    Step(
        "If a privilege is missing, `observatory deploy database --verify-only` names it, and this grants it:",
        ("observatory deploy database",),
    ),
)

FAST_BURN = Alert(
    name="StorageErrorBudgetFastBurn",
    expression=_burns(FAST),
    pending="30s",
    keep_firing="15s",
    severity="critical",
    component="service",
    category="application-performance",
    rollback=True,
    summary="A fleet fails so many writes that a month's error budget lasts two days",
    description="Fleet {{ $labels.fleet }} failed {{ $value | humanizePercentage }} of its writes in 5 minutes.",
    runbook=Runbook(
        meaning=(
            "Over 1 hour and over the last 5 minutes, writes failed at least 14.4 times as often as the objective of "
            "99.9 % "
            "allows; "
            "or at least 10 of fewer than 100 writes failed in 5 minutes."
        ),
        impact="Clients receive errors and must send their traces again. Traces that are not sent again are lost.",
        diagnosis=DIAGNOSIS,
        remedy=REMEDY,
        escalation=escalation.SERVICE,
    ),
    fault="Revoke the service's privilege to insert.",
    scenarios=_scenarios(FAST, pending=30, keep=15, minutes=1),
)

SLOW_BURN = Alert(
    name="StorageErrorBudgetSlowBurn",
    expression=_burns(SLOW),
    pending="2m",
    severity="warning",
    component="service",
    category="application-performance",
    summary="A fleet fails so many writes that a month's error budget lasts five days",
    description="Fleet {{ $labels.fleet }} failed {{ $value | humanizePercentage }} of its writes in 30 minutes.",
    runbook=Runbook(
        meaning=(
            "Over 6 hours and over the last 30 minutes, writes failed at least 6 times as often as the objective of "
            "99.9 % "
            "allows; "
            "or at least 30 of fewer than 100 writes failed in 30 minutes."
        ),
        impact="Some clients receive errors and must send their traces again.",
        diagnosis=DIAGNOSIS,
        remedy=REMEDY[1:],
        escalation=escalation.SERVICE,
    ),
    fault="Let 1 % of the writes fail.",
    scenarios=_scenarios(SLOW, pending=120, keep=0, minutes=6),
)

LATENCY_QUANTILE = 0.95
MINIMUM_REQUESTS = 20  # in five minutes
BACKLOG_SHARE = 0.5  # of the buffer of a table


def _latency(operation: str, limit: Callable[[Scope], float]) -> Callable[[Scope], str]:
    """Return an expression for the 95th percentile of a fleet's durations, where there are enough of them."""
    metric = f"storage_{operation}_duration_seconds"

    def expression(scope: Scope) -> str:
        buckets = f"sum by (stack, fleet, le) (rate({scope.select(f'{metric}_bucket')}[5m]))"
        requests = f"sum by (stack, fleet) (increase({scope.select(f'{metric}_count')}[5m]))"
        return (
            f"histogram_quantile({LATENCY_QUANTILE}, {buckets}) > {limit(scope):g}\n"
            f"and on (stack, fleet) {requests} >= {MINIMUM_REQUESTS}"
        )

    return expression


def _backlog(scope: Scope) -> str:
    """Return an expression for the share of a table's buffer in use; failed flushes fill it."""
    size, capacity = scope.select("storage_buffer_size"), scope.select("storage_buffer_capacity")
    on = "on (stack, fleet, instance)"
    share = (
        f"max by (stack, fleet, instance, table) (last_over_time({size}[{BRIDGE}]))\n"
        f"/ {on} group_left () max by (stack, fleet, instance) (last_over_time({capacity}[{BRIDGE}]))"
    )
    failed = scope.select("storage_flushes_total", 'status="error"')
    return (
        f"({share} > {BACKLOG_SHARE})\nor sum by (stack, fleet, instance) (increase({failed}[5m])) > {FAILED_FLUSHES}"
    )


FAILED_FLUSHES = 3  # in five minutes: a restart of the database fails those in flight


def _durations(operation: str, fleet: str, *, fast: float, slow: float, samples: int = 40) -> dict[str, str]:
    """Return the histogram of a fleet: requests per sample that take up to 1 s, and up to 2.5 s."""
    series = (
        f'storage_{operation}_duration_seconds_{{}}{{{{stack="test",fleet="{fleet}",instance="one",{{}}table="t"}}}}'
    )
    total = growing((fast + slow, samples))
    return {
        series.format("bucket", 'le="1.0",'): growing((fast, samples)),
        series.format("bucket", 'le="2.5",'): total,
        series.format("bucket", 'le="+Inf",'): total,
        series.format("count", ""): total,
    }


def _latency_scenarios(operation: str, verb: str) -> tuple[Scenario, ...]:
    def slow(at: str, duration: str) -> Firing:
        return Firing(
            at=at, labels={"fleet": "blue"}, description=f"95 % of fleet blue's {verb} take up to {duration}."
        )

    def scenario(
        name: str, *, fast: float, slowly: float, quiet: tuple[str, ...] = (), fires: tuple[Firing, ...] = ()
    ) -> Scenario:
        series = {
            **_durations(operation, "blue", fast=fast, slow=slowly),
            **_durations(operation, "green", fast=1000, slow=0),
        }
        return Scenario(name=name, interval="1m", series=series, quiet=quiet, fires=fires)

    changing = dict.fromkeys(_durations(operation, "blue", fast=0, slow=0), growing((100, 40), (1e6, 20)))
    changing[next(iter(changing))] = growing((100, 20), (0, 20), (1e6, 20))  # the bucket of 1 s
    return (
        scenario("95 % take up to 1 s", fast=95, slowly=5, quiet=("20m",)),
        Scenario(
            name="the quantile is the threshold itself, the last bound of the histogram",
            interval="1m",
            series={
                series: values
                for series, values in _durations(operation, "blue", fast=50, slow=50).items()
                if 'le="2.5"' not in series
            },
            quiet=("20m",),
        ),
        scenario("94.9 % do", fast=94.9, slowly=5.1, fires=(slow("20m", "1.029s"),)),
        scenario("96 % do", fast=96, slowly=4, quiet=("20m",)),
        scenario("20 requests in five minutes are enough", fast=0, slowly=4, fires=(slow("20m", "2.425s"),)),
        scenario("19.5 requests are too few", fast=0, slowly=3.9, quiet=("20m",)),
        Scenario(
            name="requests become slow, then fast",
            interval="15s",
            series=changing,
            quiet=("375s", "615s"),
            fires=(slow("390s", "2.25s"), slow("600s", "2.425s")),
        ),
    )


def _latency_alert(operation: Literal["write", "query"], *, verb: str, fault: str, remedy: tuple[Step, ...]) -> Alert:
    setting = f"{operation}_latency_seconds"
    return Alert(
        name=f"Storage{operation.capitalize()}LatencyHigh",
        expression=_latency(operation, lambda scope: getattr(scope.thresholds, setting)),
        pending="1m",
        severity="warning",
        component="service",
        category="application-performance",
        summary=f"The service's {verb} take long",
        description=f"95 % of fleet {{{{ $labels.fleet }}}}'s {verb} take up to {{{{ $value | humanizeDuration }}}}.",
        runbook=Runbook(
            meaning=(
                f"The 95th percentile of the duration of {verb} in five minutes is above `alerts.{setting}`, for a "
                "fleet with at least 20 of them."
            ),
            impact="Clients wait, and those with a short timeout fail.",
            diagnosis=(
                Step("Check whether an alert on the database fires. It is then the cause."),
                Step(
                    "If only one fleet is slow, compare its version and its instances.",
                    ("observatory status", "observatory report"),
                ),
                Step(
                    "Find what the sessions of the service wait for.",
                    (
                        query(
                            "SELECT usename, state, wait_event_type, wait_event, count(*) FROM "
                            "pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1, 2, 3, 4 ORDER "
                            "BY 5 DESC"
                        ),
                    ),
                ),
            ),
            remedy=(
                *remedy,
                Step(
                    "If a deployment has caused it: return to the previous version with `observatory rollback "
                    "--method blue-green`."
                ),
            ),
            escalation=escalation.SERVICE,
        ),
        fault=fault,
        scenarios=_latency_scenarios(operation, verb),
    )


_END_BLOCKING = Step(
    "End the sessions that block others and do not wait themselves.",
    (
        query(
            "SELECT DISTINCT b.pid, pg_terminate_backend(b.pid) FROM pg_stat_activity a, "
            "unnest(pg_blocking_pids(a.pid)) AS b(pid) WHERE cardinality(pg_blocking_pids(b.pid)) = 0"
        ),
    ),
)
_CANCEL_LONG = Step(
    "Cancel queries of the service that have run for more than 5 s; its own limit is 10 s.",
    (
        query(
            "SELECT pid, pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'storage-service%' "
            "AND state = 'active' AND query_start < now() - interval '5 seconds'"
        ),
    ),
)
WRITE_LATENCY = _latency_alert(
    "write", verb="writes", fault="Lock a table for some seconds, again and again.", remedy=(_END_BLOCKING,)
)
QUERY_LATENCY = _latency_alert("query", verb="reads", fault="Scan cold chunks.", remedy=(_END_BLOCKING, _CANCEL_LONG))

_BUFFER = 'storage_buffer_size{{stack="test",fleet="{}",instance="{}",table="{}"}}'
_CAPACITY = 'storage_buffer_capacity{{stack="test",fleet="{}",instance="{}"}}'
_FLUSHES = 'storage_flushes_total{{stack="test",fleet="blue",instance="{}",status="{}"}}'
_BLUE = {"fleet": "blue", "instance": "one", "table": "t"}
_BACKLOG_OTHERS = {
    _BUFFER.format("blue", "one", "u"): "10x200",
    _BUFFER.format("blue", "two", "t"): "60x200",
    _CAPACITY.format("blue", "two"): "1000x200",
    _BUFFER.format("green", "one", "t"): "60x200",
    _CAPACITY.format("green", "one"): "1000x200",
    _FLUSHES.format("one", "error"): "0x200",
    _FLUSHES.format("one", "success"): "0+100x200",
}

WRITE_BACKLOG = Alert(
    name="StorageWriteBacklog",
    expression=_backlog,
    pending="30s",
    severity="warning",
    component="service",
    category="application-performance",
    summary="Writes wait in the service, or cannot be stored",
    description=(
        "Instance {{ $labels.instance }} of {{ $labels.fleet }}"
        "{{ with $labels.table }}: its buffer of {{ . }} is used by{{ else }}: flushes failed:{{ end }} {{ $value }}."
    ),
    runbook=Runbook(
        meaning=(
            "More than half of an instance's buffer is full (the value is that share), or more than three "
            "transactions that store batches failed in five minutes (the value is their number)."
        ),
        impact="When a buffer is full, the instance answers 503 until there is room. No acknowledged row is lost.",
        diagnosis=(
            Step("Read why transactions fail.", ("observatory status", logs("storage-{fleet}-1"))),
            Step("Check whether StorageDatabaseDown, StorageLockWaits or StorageIoStall fires."),
        ),
        remedy=(
            _END_BLOCKING,
            Step("If a privilege is missing: grant it again.", ("observatory deploy database",)),
            Step("If the database is sound and the load has grown, add instances (`fleets.size`)."),
        ),
        escalation=escalation.SERVICE,
    ),
    fault="Block the flush by a lock on a table.",
    scenarios=(
        *gauge(
            _BUFFER.format("blue", "one", "t"),
            at=50,
            beyond=52,
            pending=30,
            labels=_BLUE,
            description="Instance one of blue: its buffer of t is used by 0.52.",
            others={**_BACKLOG_OTHERS, _CAPACITY.format("blue", "one"): "100x200"},
        ),
        vanishing(
            _CAPACITY.format("blue", "one"),
            beyond=100,
            pending=30,
            labels=_BLUE,
            description="Instance one of blue: its buffer of t is used by 0.52.",
            others={**_BACKLOG_OTHERS, _BUFFER.format("blue", "one", "t"): "52x200"},
        ),
        Scenario(
            name="flushes fail at the limit, then above it, then not",
            interval="15s",
            series={
                **_BACKLOG_OTHERS,
                _FLUSHES.format("one", "error"): "0x30 3x29 6.125x29 6.125x60",
                _FLUSHES.format("two", "error"): "0x200",
            },
            quiet=("10m", "15m15s", "20m15s"),
            fires=tuple(
                Firing(
                    at=at,
                    labels={"fleet": "blue", "instance": "one"},
                    description="Instance one of blue: flushes failed: 3.125.",
                )
                for at in ("15m45s", "19m")
            ),
        ),
    ),
)

APPLICATION_PERFORMANCE = (FAST_BURN, SLOW_BURN, WRITE_LATENCY, QUERY_LATENCY, WRITE_BACKLOG)
