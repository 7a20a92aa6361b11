"""Alerts on the resources of the database's machine: disk, CPU, memory and I/O.

node_exporter reports the filesystem of the data. Pressure is the share of time in which tasks waited for a resource
(the kernel's pressure stall information): a busy machine is no fault, a machine that makes its tasks wait is one.
"""

from __future__ import annotations

from collections.abc import Callable

from monitoring.alerts import escalation
from monitoring.alerts.commands import UP, query
from monitoring.alerts.scenarios import BRIDGE, gauge, growing, vanishing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

CRITICAL_BYTES = 5_000_000_000  # on a local stack too: 15 % of a large shared disk is much space
WARNING_BYTES = 20_000_000_000
CPU_SHARE = 0.8
MEMORY_SHARE = 0.1
IO_SHARE = 0.25


def _disk_below(percent: Callable[[Scope], int], limit: int) -> Callable[[Scope], str]:
    """Return an expression for the share of the filesystem that is available."""

    def expression(scope: Scope) -> str:
        available = f"last_over_time({scope.select('node_filesystem_avail_bytes')}[{BRIDGE}])"
        size = f"last_over_time({scope.select('node_filesystem_size_bytes')}[{BRIDGE}])"
        low = available if scope.platform == "aws" else f"({available} < {limit})"
        return f"{low} / {size} < {percent(scope) / 100:g}"

    return expression


def _cpu_pressure(scope: Scope) -> str:
    return f"rate({scope.select('node_pressure_cpu_waiting_seconds_total')}[5m]) > {CPU_SHARE}"


def _memory_pressure(scope: Scope) -> str:
    """Return an expression whose label `state` says what its value is."""
    available, total = (
        f"max by (stack, instance) (last_over_time({scope.select(f'node_memory_{name}_bytes')}[{BRIDGE}]))"
        for name in ("MemAvailable", "MemTotal")
    )
    killed = f"sum by (stack, instance) (increase({scope.select('node_vmstat_oom_kill')}[5m]))"
    states = {
        "share of the memory that is available": f"{available} / on (stack, instance) {total} < {MEMORY_SHARE}",
        "processes that the kernel has killed": f"{killed} > 0",
    }
    return "\nor ".join(
        f'label_replace({condition}, "state", "{state}", "", "")' for state, condition in states.items()
    )


def _io_stall(scope: Scope) -> str:
    return f"rate({scope.select('node_pressure_io_stalled_seconds_total')}[5m]) > {IO_SHARE}"


_FILESYSTEM = 'node_filesystem_{}_bytes{{stack="test",job="node",instance="{}",mountpoint="/"}}'
_ROOT = {"instance": "one", "job": "node", "mountpoint": "/"}
_LOAD = Step(
    "Find the statements and the processes that use it.",
    (
        "observatory status",
        query(
            "SELECT pid, usename, now() - query_start AS runs, wait_event, left(query, 60) FROM "
            "pg_stat_activity WHERE state = 'active' ORDER BY query_start"
        ),
    ),
)
_CANCEL = Step(
    "Cancel statements that have run for more than a minute, except those of dumps and of deployments.",
    (
        query(
            "SELECT pid, pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND state = 'active' AND query_start < now() - interval '1 minute' AND pid <> pg_backend_pid() "
            "AND <ordinary>"
        ),
    ),
)


def _filesystem(size: str, available: str) -> dict[str, str]:
    return {
        _FILESYSTEM.format("size", "one"): size,
        _FILESYSTEM.format("avail", "one"): available,
        _FILESYSTEM.format("size", "two"): "1e9x200",
        _FILESYSTEM.format("avail", "two"): "9e8x200",
    }


def _disk_scenarios(percent: int, limit: float, *, pending: int) -> tuple[Scenario, ...]:
    share = percent / 100 * 0.98

    def text(value: float) -> str:
        return f"{value * 100:.4g}% of the filesystem of one is available."

    def others(**without: str) -> dict[str, str]:
        kept = _filesystem("1e9x200", f"{share * 1e9:.12g}x200")
        del kept[_FILESYSTEM.format(without["name"], "one")]
        return kept

    return (
        *gauge(
            _FILESYSTEM.format("avail", "one"),
            at=percent * 1e7,
            beyond=share * 1e9,
            pending=pending,
            labels=_ROOT,
            description=text(share),
            others=others(name="avail"),
        ),
        vanishing(
            _FILESYSTEM.format("size", "one"),
            beyond=1e9,
            pending=pending,
            labels=_ROOT,
            description=text(share),
            others=others(name="size"),
        ),
        gauge(
            _FILESYSTEM.format("avail", "one"),
            at=limit,
            beyond=limit * 0.98,
            pending=pending,
            labels=_ROOT,
            description=text(limit * 0.98 / 1e12),
            others={
                series: "1e12x200" if series == _FILESYSTEM.format("size", "one") else values
                for series, values in others(name="avail").items()
            },
        )[0],
    )


_FREE_SPACE = (
    Step(
        "Close clones of the database (in `data/restore`): they are copies.",
        ("observatory backup flashback close --all",),
    ),
    Step(
        "Remove data that rollbacks of the database have set aside, if no rollback of them is wanted.",
        ("observatory backup discard --yes",),
    ),
    Step(
        "Free space outside of the stack, or remove releases that `observatory status` shows at no fleet: their files "
        "in `.observatory/releases`. Never delete files in `pg_wal`."
    ),
    Step(
        "If a daemon has flooded its log, remove the large logs that were rotated:",
        ("find .observatory/stacks/{stack}/log -type f -name '*.log.*' -size +50M -print -delete",),
    ),
    Step(
        "Lower `backups.retention_days` (backups expire after the next one), enlarge the disk, or [drop old "
        "traces](../schema.md#retention)."
    ),
    Step("Daemons that had stopped start again by themselves within 30 s, when there is space."),
)
_FIND_SPACE = (
    Step(
        "`df -h` and `du -xsh data/* log` in the stack's home: find what has grown.",
        ("observatory exec patroni -- sh -c 'df -h /srv; du -xsh /srv/data/* /srv/log'",),
    ),
    Step("If `data/postgres/pg_wal` has grown, see StorageWalArchiveFailing and StorageReplicaDisconnected."),
)

DISK_CRITICAL = Alert(
    name="StorageDiskCritical",
    expression=_disk_below(lambda scope: scope.thresholds.disk_critical_percent, CRITICAL_BYTES),
    pending="10s",
    severity="critical",
    component="database",
    category="database-resources",
    summary="The disk of the data is nearly full",
    description="{{ $value | humanizePercentage }} of the filesystem of {{ $labels.instance }} is available.",
    runbook=Runbook(
        meaning=(
            "Less than 15 % (`alerts.disk_critical_percent`) of the filesystem with the data is available, and "
            "on a local stack less than 5 GB."
        ),
        impact=(
            "On a full disk PostgreSQL and etcd stop, and all writes fail. A local stack then releases its disk "
            "reserves, so that the database can recover, and documents, the state and a rollback can be written."
        ),
        diagnosis=(*_FIND_SPACE, Step("`observatory_disk_reserve_bytes` is 0 for a reserve that was released.")),
        remedy=_FREE_SPACE,
        escalation=escalation.DATABASE,
    ),
    fault="Fill a small filesystem.",
    scenarios=_disk_scenarios(15, CRITICAL_BYTES, pending=10),
)

DISK_WARNING = Alert(
    name="StorageDiskWarning",
    expression=_disk_below(lambda scope: scope.thresholds.disk_warning_percent, WARNING_BYTES),
    pending="1m",
    severity="warning",
    component="database",
    category="database-resources",
    summary="The disk of the data fills",
    description="{{ $value | humanizePercentage }} of the filesystem of {{ $labels.instance }} is available.",
    runbook=Runbook(
        meaning=(
            "Less than 30 % (`alerts.disk_warning_percent`) of the filesystem with the data is available, and "
            "on a local stack less than 20 GB."
        ),
        impact="None yet. At 15 % StorageDiskCritical pages.",
        diagnosis=_FIND_SPACE,
        remedy=_FREE_SPACE,
        escalation=escalation.DATABASE,
    ),
    fault="Fill a small filesystem.",
    scenarios=_disk_scenarios(30, WARNING_BYTES, pending=60),
)


def _pressure(
    name: str,
    *,
    resource: str,
    metric: str,
    share: float,
    pending: int,
    expression: Callable[[Scope], str],
    runbook: Runbook,
    fault: str,
) -> Alert:
    """Return the alert on the pressure of one resource, which is a share of the time."""
    series = f'node_pressure_{metric}_seconds_total{{{{stack="test",job="node",instance="{{}}"}}}}'
    who = "All tasks" if metric.endswith("stalled") else "Tasks"
    at, beyond = share * STEP_S, share * STEP_S + 0.125
    samples = pending // STEP_S + 30
    begins, ends = 41 * STEP_S + pending, (41 + samples) * STEP_S

    def fires(time: int, samples_beyond: int) -> Firing:
        value = (at * (20 - samples_beyond) + beyond * samples_beyond) / 300
        return Firing(
            at=f"{time}s",
            labels={"instance": "one", "job": "node"},
            description=f"{who} of one waited for {resource} in {value * 100:.4g}% of the last 5 minutes.",
        )

    return Alert(
        name=name,
        expression=expression,
        pending=f"{pending}s",
        severity="warning",
        component="database",
        category="database-resources",
        summary=f"{who} wait for {resource}",
        description=(
            f"{who} of {{{{ $labels.instance }}}} waited for {resource} in {{{{ $value | humanizePercentage }}}} "
            "of the last 5 minutes."
        ),
        runbook=runbook,
        fault=fault,
        scenarios=(
            Scenario(
                name="the pressure is at the threshold, then above it, then gone",
                interval=f"{STEP_S}s",
                series={
                    series.format("one"): growing((at, 40), (beyond, samples), (0, 60)),
                    series.format("two"): "0x200",
                },
                quiet=("600s", f"{begins - STEP_S}s", f"{ends}s"),
                fires=(fires(begins, pending // STEP_S + 1), fires(ends - STEP_S, 20)),
            ),
        ),
    )


STEP_S = 15  # between the samples of these scenarios

CPU_PRESSURE = _pressure(
    "StorageCpuPressure",
    resource="a CPU",
    metric="cpu_waiting",
    share=CPU_SHARE,
    pending=120,
    expression=_cpu_pressure,
    runbook=Runbook(
        meaning="In more than 80 % of the time at least one task could run and had no CPU.",
        impact="All requests take longer.",
        diagnosis=(_LOAD,),
        remedy=(_CANCEL, Step("If the load is wanted: use a larger machine.")),
        escalation=escalation.DATABASE,
    ),
    fault="Run more busy processes than the machine has CPUs.",
)
IO_STALL = _pressure(
    "StorageIoStall",
    resource="I/O",
    metric="io_stalled",
    share=IO_SHARE,
    pending=60,
    expression=_io_stall,
    runbook=Runbook(
        meaning="In more than 25 % of the time no task could run, because all of them waited for the disk.",
        impact="Commits and reads take longer. With a cloud volume, its limit of operations or bytes may be reached.",
        diagnosis=(_LOAD, Step("Check whether a backup or a restore runs.", ("observatory scheduler list",))),
        remedy=(
            _CANCEL,
            Step("If the load is wanted: use a faster disk, or limit the backups' processes in the stack's settings."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Throttle the I/O of the machine's processes.",
)

_MEMORY = 'node_memory_{}_bytes{{stack="test",job="node",instance="{}"}}'
_KILLED = 'node_vmstat_oom_kill{{stack="test",job="node",instance="{}"}}'
_SHARE = {"instance": "one", "state": "share of the memory that is available"}
_MEMORY_OTHERS = {
    _MEMORY.format("MemAvailable", "two"): "500x200",
    _MEMORY.format("MemTotal", "two"): "1000x200",
    _KILLED.format("one"): "0x200",
    _KILLED.format("two"): "3x200",
}

MEMORY_PRESSURE = Alert(
    name="StorageMemoryPressure",
    expression=_memory_pressure,
    pending="30s",
    severity="warning",
    component="database",
    category="database-resources",
    summary="The machine has too little memory",
    description="{{ $labels.instance }}: {{ $labels.state }}: {{ $value | humanize }}.",
    runbook=Runbook(
        meaning=(
            "Less than 10 % of the memory is available, or the kernel has killed a process in the last five minutes."
        ),
        impact=(
            "If the kernel kills a process of PostgreSQL, all sessions end and it recovers. The supervisor "
            "restarts other daemons."
        ),
        diagnosis=(
            Step("Find the daemons that use it.", ("observatory status",)),
            Step("`dmesg` names the processes that the kernel has killed."),
        ),
        remedy=(
            Step(
                "Cancel the oldest statements, except those of dumps and of deployments.",
                _CANCEL.commands,
            ),
            UP,
            Step(
                "If it is not enough for the settings: lower `database.shared_buffers_mb`, `cache.memory_mb` "
                "or `fleets.size`, or use a larger machine."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Allocate memory.",
    scenarios=(
        *gauge(
            _MEMORY.format("MemAvailable", "one"),
            at=100,
            beyond=98,
            pending=30,
            labels=_SHARE,
            description="one: share of the memory that is available: 98m.",
            others={**_MEMORY_OTHERS, _MEMORY.format("MemTotal", "one"): "1000x200"},
        ),
        vanishing(
            _MEMORY.format("MemTotal", "one"),
            beyond=1000,
            pending=30,
            labels=_SHARE,
            description="one: share of the memory that is available: 98m.",
            others={**_MEMORY_OTHERS, _MEMORY.format("MemAvailable", "one"): "98x200"},
        ),
        Scenario(
            name="the kernel kills a process",
            interval="15s",
            series={**_MEMORY_OTHERS, _KILLED.format("one"): "0x20 1x60"},
            quiet=("5m30s", "10m15s"),
            fires=tuple(
                Firing(
                    at=at,
                    labels={"instance": "one", "state": "processes that the kernel has killed"},
                    description="one: processes that the kernel has killed: 1.",
                )
                for at in ("5m45s", "10m")
            ),
        ),
    ),
)

DATABASE_RESOURCES = (DISK_CRITICAL, DISK_WARNING, CPU_PRESSURE, MEMORY_PRESSURE, IO_STALL)
