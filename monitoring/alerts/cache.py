"""Alerts on the cache. The service works without it, and reads then go to the database."""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import STATUS, UP, logs
from monitoring.alerts.scenarios import BRIDGE, gauge
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

MEMORY_SHARE = 0.9
EVICTED = 100  # keys in five minutes; the cache removes the least used ones when its memory is full
HIT_RATE = 0.5
MINIMUM_LOOKUPS = 100  # in fifteen minutes: the rate of a few lookups means nothing


def _down(scope: Scope) -> str:
    return f"max by (stack, instance) (last_over_time({scope.select('redis_up')}[{BRIDGE}])) == 0"


def _memory_high(scope: Scope) -> str:
    """Return an expression for the share of the memory in use, where a limit is set and keys are removed for it."""
    used, limit, evicted = (
        scope.select(f"redis_{name}") for name in ("memory_used_bytes", "memory_max_bytes", "evicted_keys_total")
    )
    return (
        f"max by (stack, instance) ({used})\n"
        f"/ on (stack, instance) (max by (stack, instance) ({limit}) > 0) > {MEMORY_SHARE}\n"
        f"and on (stack, instance) sum by (stack, instance) (increase({evicted}[5m])) > {EVICTED}"
    )


def _hit_rate_low(scope: Scope) -> str:
    hits, misses = (
        f"sum by (stack, instance) (increase({scope.select(f'redis_keyspace_{name}_total')}[15m]))"
        for name in ("hits", "misses")
    )
    return f"{hits}\n/ on (stack, instance) ({hits} + on (stack, instance) {misses} >= {MINIMUM_LOOKUPS}) < {HIT_RATE}"


_EMPTY = (  # the password is in the environment, because every user of the machine can read arguments
    'cd /srv/etc/valkey && REDISCLI_AUTH=$(sed -n "s/^requirepass //p" password.conf) '
    'valkey-cli -p $(sed -n "s/^port //p" valkey.conf) FLUSHALL ASYNC'
)
_SERIES = 'redis_{}{{stack="test",job="redis",instance="{}"}}'

CACHE_DOWN = Alert(
    name="StorageCacheDown",
    expression=_down,
    pending="20s",
    severity="warning",
    component="cache",
    category="cache",
    summary="The cache does not answer",
    description="The exporter at {{ $labels.instance }} cannot reach the cache (redis_up is {{ $value }}).",
    runbook=Runbook(
        meaning="The exporter runs, and the cache refuses its connection or its password.",
        impact="No request fails. All reads go to the database and are slower.",
        diagnosis=(STATUS, Step("Read the last messages of the cache.", (logs("valkey"),))),
        remedy=(UP, Step("If the password is rejected: rotate it with `observatory rotate-passwords`.")),
        escalation=escalation.SERVICE,
    ),
    fault="Stop the cache.",
    scenarios=gauge(
        _SERIES.format("up", "one"),
        at=1,
        beyond=0,
        pending=20,
        labels={"instance": "one"},
        description="The exporter at one cannot reach the cache (redis_up is 0).",
        others={_SERIES.format("up", "two"): "1x200"},
    ),
)


def _memory(used: str, *, evicted: str = "0+10x200", limit: str = "1000x200") -> dict[str, str]:
    return {
        _SERIES.format("memory_used_bytes", "one"): used,
        _SERIES.format("memory_max_bytes", "one"): limit,
        _SERIES.format("evicted_keys_total", "one"): evicted,
        _SERIES.format("memory_used_bytes", "two"): "100x200",
        _SERIES.format("memory_max_bytes", "two"): "2000x200",
        _SERIES.format("evicted_keys_total", "two"): "0x200",
    }


_FULL = Firing(at="10m", labels={"instance": "one"}, description="The cache at one uses 94% and removes keys.")

MEMORY_HIGH = Alert(
    name="StorageCacheMemoryHigh",
    expression=_memory_high,
    pending="1m",
    severity="warning",
    component="cache",
    category="cache",
    summary="The cache is full and removes keys",
    description="The cache at {{ $labels.instance }} uses {{ $value | humanizePercentage }} and removes keys.",
    runbook=Runbook(
        meaning=(
            "More than 90 % of the cache's memory is in use, and it removed more than 100 of the least used keys "
            "in 5 minutes."
        ),
        impact="No request fails. Reads find less in the cache: see StorageCacheHitRateLow.",
        diagnosis=(STATUS,),
        remedy=(
            Step(
                "If the entries are wanted: increase `cache.memory_mb` in the stack's settings, and run "
                "`observatory up`, which restarts the cache."
            ),
            Step(
                "If a client has filled it with entries that no request reads: empty it. It fills again with what "
                "requests read.",
                (f"observatory exec valkey -- sh -c '{_EMPTY}'",),
            ),
        ),
        escalation=escalation.SERVICE,
    ),
    fault="Fill the cache.",
    scenarios=(
        Scenario(
            name="the memory crosses the threshold and returns",
            interval="15s",
            series=_memory("900x30 940x30 900x60"),
            quiet=("7m30s", "8m30s", "15m30s"),
            fires=(
                _FULL,
                Firing(at="8m45s", labels=_FULL.labels, description=_FULL.description),
                Firing(at="15m15s", labels=_FULL.labels, description=_FULL.description),
            ),
        ),
        Scenario(
            name="no more than 100 keys are removed in five minutes",
            interval="15s",
            series={**_memory("940x80", evicted="0+5x80"), _SERIES.format("evicted_keys_total", "two"): "0+50x80"},
            quiet=("10m",),
        ),
        Scenario(
            name="105 keys are removed in five minutes",
            interval="15s",
            series=_memory("940x80", evicted="0+5.2x80"),
            fires=(_FULL,),
        ),
        Scenario(
            name="keys were removed for a while",
            interval="15s",
            series=_memory("940x100", evicted="0x20 0+14x10 140x70"),
            quiet=("11m45s", "14m"),
            fires=(_FULL,),
        ),
        Scenario(name="no limit is set", interval="15s", series=_memory("940x80", limit="0x80"), quiet=("10m",)),
        Scenario(
            name="the smallest limit",
            interval="15s",
            series=_memory("0.94x80", limit="1x80"),
            fires=(_FULL,),
        ),
    ),
)


def _lookups(hits: str, misses: str) -> dict[str, str]:
    return {
        _SERIES.format("keyspace_hits_total", "one"): hits,
        _SERIES.format("keyspace_misses_total", "one"): misses,
        _SERIES.format("keyspace_hits_total", "two"): "0+100x200",
        _SERIES.format("keyspace_misses_total", "two"): "0x200",
    }


def _low(at: str, share: str) -> Firing:
    return Firing(at=at, labels={"instance": "one"}, description=f"{share} of the lookups at one found their key.")


HIT_RATE_LOW = Alert(
    name="StorageCacheHitRateLow",
    expression=_hit_rate_low,
    pending="5m",
    severity="info",
    component="cache",
    category="cache",
    summary="The cache rarely has what is read",
    description="{{ $value | humanizePercentage }} of the lookups at {{ $labels.instance }} found their key.",
    runbook=Runbook(
        meaning="Less than half of at least 100 lookups in 15 minutes found their key in the cache.",
        impact="Reads are slower, and the database has more to do.",
        diagnosis=(
            Step("Check whether StorageCacheMemoryHigh fires. The cache is then too small."),
            Step("After a restart of the cache, or for reads that are all different, the rate is low and no fault."),
        ),
        remedy=(
            Step(
                "Increase `cache.memory_mb` in the stack's settings, and run `observatory up`.",
                ("observatory up",),
            ),
        ),
        escalation=escalation.TICKET,
    ),
    fault="Read random keys.",
    scenarios=(
        Scenario(
            name="the rate is at the threshold, then below it, then high",
            interval="1m",
            series=_lookups("0+50x40 2048+48x40 4016+500x40", "0+50x40 2052+52x40 4137+5x40"),
            quiet=("40m", "45m", "83m"),
            fires=(_low("46m", "49.2%"), _low("78m", "48%"), _low("82m", "49.55%")),
        ),
        Scenario(
            name="99 lookups in fifteen minutes are too few",
            interval="1m",
            series=_lookups("0x40", "0+6.6x40"),
            quiet=("30m",),
        ),
        Scenario(
            name="100 lookups are enough",
            interval="1m",
            series=_lookups("0x60", "0x20 100x40"),
            fires=(_low("30m", "0%"),),
        ),
        Scenario(
            name="some more lookups",
            interval="1m",
            series=_lookups("0x40", "0+6.8x40"),
            fires=(_low("30m", "0%"),),
        ),
        Scenario(
            name="no lookup found its key any more",
            interval="1m",
            series=_lookups("0+100x40 4000x40", "0x40 0+100x40"),
            quiet=("48m", "52m"),
            fires=(_low("54m", "7.143%"), _low("60m", "0%")),
        ),
    ),
)

CACHE = (CACHE_DOWN, MEMORY_HIGH, HIT_RATE_LOW)
