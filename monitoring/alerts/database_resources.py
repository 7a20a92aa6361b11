"""Alerts on the machine: space on the disk of the data, and the supervisor of a local stack.

node_exporter reports the filesystem of the data. The watcher of a local stack writes the metrics of the supervisor to a
file that node_exporter reads, and which outlives the watcher; systemd on AWS has no such series.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

BRIDGE = "1m"  # how long the last value of a series is used when scrapes fail
CRITICAL_SHARE = 0.15  # of the filesystem
CRITICAL_BYTES = 5_000_000_000  # on a local stack too: 15 % of a large shared disk is much space
MAX_HEARTBEAT_AGE_S = 30  # the watcher writes a heartbeat every 5 s
DEATH_S = 300  # how long the alert fires after a supervisor that was restarted


def _disk_critical(scope: Scope) -> str:
    """Return an expression for the share of the filesystem that is available."""
    available = f"last_over_time({scope.select('node_filesystem_avail_bytes')}[{BRIDGE}])"
    size = f"last_over_time({scope.select('node_filesystem_size_bytes')}[{BRIDGE}])"
    low = f"{available} / {size} < {CRITICAL_SHARE}"
    return low if scope.platform == "aws" else f"{low}\nand {available} < {CRITICAL_BYTES:.0f}"


def _supervisor_down(scope: Scope) -> str:
    """Return an expression whose label `state` says what is wrong; its value has no meaning of its own."""
    up = scope.select("observatory_supervisor_up")
    heartbeat = scope.select("observatory_watcher_heartbeat_timestamp_seconds")
    death = scope.select("observatory_supervisor_last_death_timestamp_seconds")
    states = {
        "does not run": f"max by (stack) (last_over_time({up}[{BRIDGE}])) == 0",
        "is not watched": f"time() - max by (stack) (last_over_time({heartbeat}[{BRIDGE}])) > {MAX_HEARTBEAT_AGE_S}",
        "had died and was restarted": f"time() - max by (stack) (last_over_time({death}[{BRIDGE}])) < {DEATH_S}",
    }
    return "\nor ".join(
        f'label_replace({condition}, "state", "{state}", "", "")' for state, condition in states.items()
    )


DISK_CRITICAL = Alert(
    name="StorageDiskCritical",
    expression=_disk_critical,
    pending="10s",
    severity="critical",
    component="database",
    category="database-resources",
    summary="The disk of the data is nearly full",
    description="{{ $value | humanizePercentage }} of the filesystem of {{ $labels.instance }} is available.",
    runbook=Runbook(
        meaning=("Less than 15 % of the filesystem with the data is available; on a local stack also less than 5 GB."),
        impact=(
            "On a full disk PostgreSQL and etcd stop, and all writes fail. A local stack then releases its disk "
            "reserves, so that the database can recover, and documents, the state and a rollback can be written."
        ),
        diagnosis=(
            Step("`df -h` and `du -xsh data/* log` in the stack's home: find what has grown."),
            Step("If `data/postgres/pg_wal` has grown, see StorageWalArchiveFailing and inactive replication slots."),
            Step("`observatory_disk_reserve_bytes` is 0 for a reserve that was released."),
        ),
        remedy=(
            Step("Free space outside of the stack, or remove old releases. Never delete files in `pg_wal`."),
            Step(
                "If a daemon has flooded its log, remove the large logs that were rotated:",
                ("find .observatory/stacks/{stack}/log -type f -name '*.log.*' -size +50M -print -delete",),
            ),
            Step("Shorten the retention of traces or backups in the settings, or enlarge the disk."),
            Step("Daemons that had stopped start again by themselves within 30 s, when there is space."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Fill a small filesystem.",
    scenarios=(
        Scenario(
            name="a small filesystem fills",
            series={
                'node_filesystem_size_bytes{stack="test",job="node",instance="one",mountpoint="/"}': "1e9x60",
                'node_filesystem_avail_bytes{stack="test",job="node",instance="one",mountpoint="/"}': "2e8x5 1e8x54",
            },
            quiet=("25s", "35s"),
            fires=(
                Firing(
                    at="1m",
                    labels={"instance": "one", "job": "node", "mountpoint": "/"},
                    description="10% of the filesystem of one is available.",
                ),
            ),
        ),
        Scenario(
            name="a large shared disk has 20 GB",
            series={
                'node_filesystem_size_bytes{stack="test",job="node",instance="one",mountpoint="/"}': "1e12x60",
                'node_filesystem_avail_bytes{stack="test",job="node",instance="one",mountpoint="/"}': "2e10x60",
            },
            quiet=("4m",),
        ),
    ),
)

SUPERVISOR_DOWN = Alert(
    name="StorageSupervisorDown",
    expression=_supervisor_down,
    severity="critical",
    component="database",
    category="platform",
    summary="The supervisor of the daemons is gone, or was restarted with all daemons",
    description="The supervisor of {{ $labels.stack }} {{ $labels.state }} ({{ $value | humanize }}).",
    runbook=Runbook(
        meaning=(
            "supervisord restarts the daemons of a local stack. It does not run, or the watcher restarted it within the"
            " last 5 min, or the watcher has been silent for 30 s."
        ),
        impact=(
            "A restart of the supervisor restarts every daemon: it cannot adopt running ones. All requests fail for "
            "some seconds, and no acknowledged row is lost. While it is gone, the daemons continue, and nothing "
            "restarts one that ends."
        ),
        diagnosis=(
            Step("`observatory status`: the rows `supervisor`, `watcher` and `scheduler`."),
            Step("`log/watcher.log` in the stack's home has each restart, and the reason if one failed."),
            Step("`dmesg`: the kernel kills processes when the machine has too little memory."),
        ),
        remedy=(
            Step("Start what is missing:", ("observatory up",)),
            Step("After a restart no action is necessary. The alert ends after 5 min."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Kill the supervisor; then the watcher and the scheduler at once.",
    scenarios=(
        Scenario(
            name="the supervisor does not start again",
            series={'observatory_supervisor_up{stack="test",job="node"}': "1x6 0x30"},
            quiet=("30s",),
            fires=(
                Firing(
                    at="40s",
                    labels={"state": "does not run"},
                    description="The supervisor of test does not run (0).",
                ),
            ),
        ),
        Scenario(
            name="the watcher stops after a minute",
            series={'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+5x12 60x60"},
            quiet=("1m", "90s"),
            fires=(
                Firing(
                    at="95s",
                    labels={"state": "is not watched"},
                    description="The supervisor of test is not watched (35).",
                ),
            ),
        ),
        Scenario(
            name="the supervisor was restarted at 60 s",
            series={
                'observatory_supervisor_up{stack="test",job="node"}': "1x90",
                'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+5x90",
                'observatory_supervisor_last_death_timestamp_seconds{stack="test",job="node"}': "-1e6x12 60x78",
            },
            quiet=("1m", "6m10s"),
            fires=(
                Firing(
                    at="2m",
                    labels={"state": "had died and was restarted"},
                    description="The supervisor of test had died and was restarted (60).",
                ),
            ),
        ),
    ),
)

DATABASE_RESOURCES = (DISK_CRITICAL, SUPERVISOR_DOWN)
