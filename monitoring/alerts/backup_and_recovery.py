"""Alerts on the backup repositories: they can be used, the WAL archive has no gap, and backups are sound and young.

A job checks the repositories every five minutes and writes the number of its findings to a file that node_exporter
reads. pgbackrest_exporter opens each repository every minute.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.scenarios import BRIDGE, gauge, vanishing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

FAILURES = "2m"  # PostgreSQL waits a minute after three failed attempts


def _archive_gap(scope: Scope) -> str:
    return f"max by (stack, repository) (last_over_time({scope.select('observatory_archive_gaps')}[{BRIDGE}])) > 0"


def _backup_damaged(scope: Scope) -> str:
    return f"max by (stack, repository) (last_over_time({scope.select('observatory_backups_damaged')}[{BRIDGE}])) > 0"


def _backup_stale(scope: Scope) -> str:
    """Return an expression whose label `state` says what is wrong with a repository."""
    completed = scope.select("observatory_backup_last_completion_timestamp_seconds")
    known = f"last_over_time({scope.select('pgbackrest_repo_status')}[{BRIDGE}])"
    status = f"max by (stack, repo_key) ({known}) != 0"
    # Where the exporter cannot ask pgBackRest at all, StorageExporterDown fires.
    asked = f"max by (stack) (last_over_time({scope.select('pgbackrest_exporter_status')}[{BRIDGE}])) == 1"
    limit = scope.thresholds.backup_age_seconds
    states = {
        f"has no backup of the last {limit / 3600:g} hours": (
            f"time() - max by (stack, repository) (last_over_time({completed}[{BRIDGE}])) > {limit}"
        ),
        "cannot be used": f'label_replace({status}, "repository", "$1", "repo_key", "(.*)")',
        "is not found": f'label_replace({asked} unless on (stack) {known}, "repository", "of the stack", "", "")',
        "is not checked": f'label_replace(absent({completed}), "repository", "of the stack", "", "")',
    }
    return "\nor ".join(
        f'max by (stack, repository, state) (label_replace({condition}, "state", "{state}", "", ""))'
        for state, condition in states.items()
    )


def _archive_failing(scope: Scope) -> str:
    return f"max by (stack) (increase({scope.select('pg_stat_archiver_failed_count')}[{FAILURES}])) > 0"


ARCHIVE_GAP = Alert(
    name="StorageArchiveGap",
    expression=_archive_gap,
    pending="6m",  # a second check confirms it: a promotion archives the last segments of the old timeline late
    severity="critical",
    component="database",
    category="platform",
    shown_on="backups",
    summary="The WAL archive has a gap: a restore ends before it",
    description="The check of the WAL archive in repository {{ $labels.repository }} has {{ $value }} findings.",
    runbook=Runbook(
        meaning=(
            "WAL between the oldest backup and the newest archived segment is missing, empty or stored twice, a "
            "timeline's history is missing, or the repository cannot be read."
        ),
        impact=(
            "A restore of an earlier backup ends before the gap, without an error. Transactions after it cannot be "
            "restored until a new full backup exists."
        ),
        diagnosis=(
            Step("`observatory backup verify` names the segments and files."),
            Step("`observatory backup list` shows which backups can be restored to now."),
        ),
        remedy=(
            Step("If the segments are still in `data/postgres/pg_wal`, copy nothing by hand: make a new full backup."),
            Step(
                "Make it in each repository. Restores to a time before this backup remain limited by the gap.",
                ("observatory backup create --type full",),
            ),
            Step(
                "The check runs every five minutes. This runs it now, and the alert ends:",
                ("observatory scheduler run backup-check",),
            ),
            Step("If the repository cannot be read, the command's message names the way out."),
            Step("Find out what removed the files: only pgBackRest may write to the repository."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Remove an archived WAL segment.",
    scenarios=(
        *gauge(
            'observatory_archive_gaps{stack="test",job="node",repository="1"}',
            at=0,
            beyond=1,
            pending=360,
            interval=15,
            labels={"repository": "1"},
            description="The check of the WAL archive in repository 1 has 1 findings.",
            others={'observatory_archive_gaps{stack="test",job="node",repository="2"}': "0x200"},
        ),
        Scenario(
            name="a segment is removed and a full backup follows",
            interval="1m",
            series={'observatory_archive_gaps{stack="test",job="node",repository="2"}': "0x4 1x14 0x10"},
            quiet=("4m", "9m", "22m"),
            fires=(
                Firing(
                    at="12m",
                    labels={"repository": "2"},
                    description="The check of the WAL archive in repository 2 has 1 findings.",
                ),
            ),
        ),
        Scenario(
            name="a segment is archived late",
            interval="1m",
            series={'observatory_archive_gaps{stack="test",job="node",repository="1"}': "0x4 1x4 0x10"},
            quiet=("12m",),
        ),
    ),
)

BACKUP_DAMAGED = Alert(
    name="StorageBackupDamaged",
    expression=_backup_damaged,
    severity="critical",
    component="database",
    category="platform",
    shown_on="backups",
    summary="A backup is damaged and no sound full backup was made since",
    description="The check of the backups in repository {{ $labels.repository }} has {{ $value }} findings.",
    runbook=Runbook(
        meaning=(
            "PostgreSQL's data files have pages with wrong checksums, which a backup has copied; or a backup's files "
            "in the repository are missing or damaged."
        ),
        impact=(
            "A restore of this backup, and of those that build on it, has the same damage. The last sound full backup "
            "and its WAL do not expire until a new sound one exists."
        ),
        diagnosis=(
            Step("`observatory backup verify` names the backup, the damaged files and their tables or indexes."),
            Step("`observatory backup verify --contents` reads every file of the repository."),
            Step("Check the machine's disk and memory: page damage comes from below PostgreSQL."),
        ),
        remedy=(
            Step("An index: `REINDEX INDEX CONCURRENTLY <name>`."),
            Step(
                "A table: roll the database back to this moment. That restores the last sound backup with all WAL "
                "since it: `observatory rollback --method database --to-time TIME`, with the time of now as "
                "`date -u +%FT%TZ` prints it. The plan names the table as one that cannot be read, and counts what "
                "the others lose: what is written after that time, so stop the writers first."
            ),
            Step(
                "If the rollback cannot read the live database's catalogue, logins or API keys: recover it from a "
                "repository, as a [database that does not start](../backups.md#a-database-that-does-not-start)."
            ),
            Step(
                "Then make a full backup. The alert ends when that backup is sound.",
                ("observatory backup create --type full",),
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Change a byte in a table's file and make a full backup.",
    scenarios=(
        *gauge(
            'observatory_backups_damaged{stack="test",job="node",repository="1"}',
            at=0,
            beyond=1,
            labels={"repository": "1"},
            description="The check of the backups in repository 1 has 1 findings.",
            others={'observatory_backups_damaged{stack="test",job="node",repository="2"}': "0x200"},
        ),
        Scenario(
            name="a damaged backup, then a sound one",
            interval="1m",
            series={'observatory_backups_damaged{stack="test",job="node",repository="1"}': "0x4 2x5 0x10"},
            quiet=("4m", "12m"),
            fires=(
                Firing(
                    at="5m",
                    labels={"repository": "1"},
                    description="The check of the backups in repository 1 has 2 findings.",
                ),
            ),
        ),
    ),
)

_STATUS = 'pgbackrest_repo_status{{stack="test",job="pgbackrest",repo_key="{}",cipher="a"}}'
_EXPORTER = 'pgbackrest_exporter_status{stack="test",job="pgbackrest",stanza="all-stanzas"}'
_COMPLETED = 'observatory_backup_last_completion_timestamp_seconds{{stack="test",job="node",repository="{}"}}'
_YOUNG = {_COMPLETED.format(number): "0x200" for number in (1, 2)}

BACKUP_STALE = Alert(
    name="StorageBackupStale",
    expression=_backup_stale,
    pending="2m",  # with the exporter's minute, an unreachable repository is an alert within four minutes
    severity="critical",
    component="database",
    category="backup-and-recovery",
    summary="A backup repository cannot be used, or has no young backup",
    description="Backup repository {{ $labels.repository }} {{ $labels.state }} (value {{ $value | humanize }}).",
    runbook=Runbook(
        meaning=(
            "A repository cannot be read, pgBackRest finds none at all, the newest sound backup of one is older than "
            "`schedule` allows, or the check of the repositories has written no result. The limit is the longest time "
            "between two runs of `schedule.backup_full` and `schedule.backup_differential`, and two hours: 26 hours by "
            "default."
        ),
        impact=(
            "The other repository still gets backups and WAL, and a restore from it loses nothing. If it fails too, "
            "there is no backup. While a repository is unreachable PostgreSQL keeps all WAL: see "
            "StorageWalArchiveFailing."
        ),
        diagnosis=(
            Step("`observatory backup verify` names what is wrong with each repository."),
            Step("`observatory backup list --repository 1` and `--repository 2` show the backups of each."),
            Step("`observatory status` shows failed jobs, and the WAL that waits."),
        ),
        remedy=(
            Step("Mount or reconnect the place of the repository. Its files must belong to the daemons' user."),
            Step(
                "If a repository is lost, move its directory away. If it is on another disk, name another empty "
                "directory in `backups.repositories` instead. This makes a new one with a full backup:",
                ("observatory up",),
            ),
            Step(
                "Make a backup in each repository. The alert then ends within two minutes.",
                ("observatory backup create",),
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Move a repository's directory away.",
    scenarios=(
        *gauge(
            _STATUS.format("2"),
            at=0,
            beyond=1,
            pending=120,
            labels={"repository": "2", "state": "cannot be used"},
            description="Backup repository 2 cannot be used (value 1).",
            others={_STATUS.format("1"): "0x200", _COMPLETED.format("1"): "0x200"},
        ),
        vanishing(
            _COMPLETED.format("1"),
            beyond=-100_000,
            pending=120,
            labels={"repository": "1", "state": "has no backup of the last 26 hours"},
            description="Backup repository 1 has no backup of the last 26 hours (value 100.2k).",
            others={_COMPLETED.format("2"): "0x200"},
        ),
        Scenario(
            name="pgBackRest does not find any repository any more",
            interval="15s",
            series={_EXPORTER: "1x40", _STATUS.format("1"): "0x8 stale", _STATUS.format("2"): "0x8 stale", **_YOUNG},
            quiet=("5m",),
            fires=(
                Firing(
                    at="5m15s",
                    labels={"repository": "of the stack", "state": "is not found"},
                    description="Backup repository of the stack is not found (value 1).",
                ),
            ),
        ),
        vanishing(
            _EXPORTER,
            beyond=1,
            pending=120,
            labels={"repository": "of the stack", "state": "is not found"},
            description="Backup repository of the stack is not found (value 1).",
            others=_YOUNG,
        ),
        Scenario(
            name="the exporter cannot ask pgBackRest, which StorageExporterDown covers",
            interval="15s",
            series={_EXPORTER: "0x40", **_YOUNG},
            quiet=("5m",),
        ),
        Scenario(
            name="the newest backup is 26 hours old",
            interval="15s",
            series={_COMPLETED.format("1"): "-93000x60", _COMPLETED.format("2"): "0x60"},
            quiet=("12m",),
            fires=(
                Firing(
                    at="12m15s",
                    labels={"repository": "1", "state": "has no backup of the last 26 hours"},
                    description="Backup repository 1 has no backup of the last 26 hours (value 93.73k).",
                ),
            ),
        ),
        Scenario(
            name="a repository is unreachable, then back",
            interval="1m",
            series={
                'pgbackrest_repo_status{stack="test",job="pgbackrest",repo_key="1",cipher="a"}': "0x30",
                'pgbackrest_repo_status{stack="test",job="pgbackrest",repo_key="2",cipher="a"}': "0x4 1x10 0x15",
                'observatory_backup_last_completion_timestamp_seconds{stack="test",job="node",repository="1"}': "0x30",
            },
            quiet=("6m", "20m"),
            fires=(
                Firing(
                    at="8m",
                    labels={"repository": "2", "state": "cannot be used"},
                    description="Backup repository 2 cannot be used (value 1).",
                ),
            ),
        ),
        Scenario(
            name="the newest backup is more than 26 hours old",
            interval="1m",
            series={
                'observatory_backup_last_completion_timestamp_seconds{stack="test",job="node",repository="1"}': (
                    "-93000x30"
                ),
                'observatory_backup_last_completion_timestamp_seconds{stack="test",job="node",repository="2"}': (
                    "-80000x30"
                ),
            },
            quiet=("9m",),
            fires=(
                Firing(
                    at="15m",
                    labels={"repository": "1", "state": "has no backup of the last 26 hours"},
                    description="Backup repository 1 has no backup of the last 26 hours (value 93.9k).",
                ),
            ),
        ),
        Scenario(
            name="the check has written no result",
            interval="1m",
            series={},
            quiet=("1m",),
            fires=(
                Firing(
                    at="5m",
                    labels={"repository": "of the stack", "state": "is not checked"},
                    description="Backup repository of the stack is not checked (value 1).",
                ),
            ),
        ),
    ),
)

ARCHIVE_FAILING = Alert(
    name="StorageWalArchiveFailing",
    expression=_archive_failing,
    pending="2m",
    severity="critical",
    component="database",
    category="backup-and-recovery",
    summary="WAL cannot be archived to every repository",
    description="Archiving failed {{ $value | humanize }} times in two minutes; PostgreSQL keeps the WAL.",
    runbook=Runbook(
        meaning=(
            "pgBackRest cannot write WAL to one of the repositories, or to any: it is unreachable, full or read-only, "
            "or has the WAL of another database."
        ),
        impact=(
            "PostgreSQL keeps every segment in `data/postgres/pg_wal` until all repositories have it. Nothing is "
            "dropped, so the disk fills. The repository that works still gets all WAL."
        ),
        diagnosis=(
            Step("`observatory status` shows the WAL that waits, and when the disk is full at the present rate."),
            Step("`observatory logs patroni` has pgBackRest's messages with the repository and the file."),
            Step("`df -h` of the repository's place."),
        ),
        remedy=(
            Step(
                "Make the repository writable again, or free space in it. All waiting WAL is archived within a minute."
            ),
            Step("Never delete files in `pg_wal`."),
            Step(
                "If a repository is lost, move its directory away. If it is on another disk, name another empty "
                "directory in `backups.repositories` instead. This makes a new one with a full backup:",
                ("observatory up",),
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Make a repository read-only.",
    scenarios=(
        Scenario(
            name="archiving fails for some minutes",
            interval="15s",
            series={'pg_stat_archiver_failed_count{stack="test",job="postgres",server="s"}': "0x20 0+1x40 40x40"},
            quiet=("4m", "6m45s", "20m"),
            fires=(Firing(at="10m", description="Archiving failed 8 times in two minutes; PostgreSQL keeps the WAL."),),
        ),
        Scenario(
            name="one attempt fails in two minutes",
            interval="15s",
            series={'pg_stat_archiver_failed_count{stack="test",job="postgres",server="s"}': "0x20 0+0.125x60 7.5x40"},
            quiet=("5m15s", "7m15s", "22m15s"),
            fires=tuple(
                Firing(at=at, description="Archiving failed 1 times in two minutes; PostgreSQL keeps the WAL.")
                for at in ("7m30s", "20m15s")
            ),
        ),
        Scenario(
            name="one attempt fails",
            interval="15s",
            series={'pg_stat_archiver_failed_count{stack="test",job="postgres",server="s"}': "0x20 3x40"},
            quiet=("6m", "7m", "8m"),
        ),
    ),
)


def _drill_stale(scope: Scope) -> str:
    """Return an expression for the age of the newest proven state in seconds, if it is old or the last drill failed."""
    proven = scope.select("observatory_restore_drill_proven_timestamp_seconds")
    failed = scope.select("observatory_restore_drill_failed")
    age = f"(time() - max by (stack) (last_over_time({proven}[{BRIDGE}])))"
    has_failed = f"max by (stack) (last_over_time({failed}[{BRIDGE}])) == 1"
    return f"{age} > {scope.thresholds.drill_age_seconds} or ({age} and {has_failed})"


_PROVEN = 'observatory_restore_drill_proven_timestamp_seconds{stack="test",job="node"}'
_DRILL_FAILED = 'observatory_restore_drill_failed{stack="test",job="node"}'


def _drill(at: str, age: str) -> Firing:
    return Firing(
        at=at,
        description=f"The newest state that a restore drill has proven is {age} old, or the last drill failed.",
    )


DRILL_STALE = Alert(
    name="StorageRestoreDrillStale",
    expression=_drill_stale,
    severity="critical",
    component="database",
    category="platform",
    shown_on="backups",
    summary="The last restore drill failed, or none has passed for too long",
    description=(
        "The newest state that a restore drill has proven is {{ $value | humanizeDuration }} old, "
        "or the last drill failed."
    ),
    runbook=Runbook(
        meaning=(
            "Every week (`schedule.restore_drill`) a job restores a backup beside the live database, and compares it "
            "with values that were recorded at the same place in the WAL. The last such drill found a fault, or none "
            "has passed for a day more than the longest time between two: eight days by default."
        ),
        impact=(
            "It is not known whether the backups can be restored. With `backups.require_drill_days`, migrations are "
            "refused."
        ),
        diagnosis=(
            Step("`observatory scheduler list` shows when the job `restore-drill` last ran, and how it ended."),
            Step("`log/job-restore-drill.log` in the stack's home has the checks with their results."),
            Step("`observatory backup restore-test --repository N` repeats the drill with one repository."),
        ),
        remedy=(
            Step(
                "`cover` or `restore` failed: a file of the backup or WAL is missing or damaged. "
                "`observatory backup verify --contents` names it. Make a new full backup:",
                ("observatory backup create --type full",),
            ),
            Step(
                "`values` failed: the restored rows differ from the live ones. Keep the repository as it is. The "
                "receipt in `data/receipts` names the tables and blocks that differ."
            ),
            Step(
                "`pages` failed: pg_amcheck found corruption. If pg_amcheck finds it in the live database, "
                "too, repair it there (an index: `REINDEX INDEX CONCURRENTLY <name>`), then make a full "
                "backup."
            ),
            Step(
                "Repeat the drill. The alert ends within five minutes after it has passed.",
                ("observatory backup restore-test",),
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Remove an archived WAL segment and run `observatory backup restore-test`.",
    scenarios=(
        Scenario(
            name="a drill fails, and is repeated",
            series={_PROVEN: "-1000x60", _DRILL_FAILED: "0x11 1x11 0x60"},
            quiet=("55s", "2m"),
            fires=(_drill("1m", "17m 40s"), _drill("115s", "18m 35s")),
        ),
        Scenario(
            name="scrapes fail after a failed drill",
            series={_PROVEN: "-1000x60", _DRILL_FAILED: "1x11 stale _x60"},
            quiet=("125s",),
            fires=(_drill("110s", "18m 30s"),),
        ),
        Scenario(
            name="the time of the last drill is not scraped",
            series={_PROVEN: "-1000x11 stale _x60", _DRILL_FAILED: "1x60"},
            quiet=("125s",),
            fires=(_drill("110s", "18m 30s"),),
        ),
        Scenario(
            name="the last drill is eight days old",
            series={_PROVEN: "-691100x60", _DRILL_FAILED: "0x60"},
            quiet=("100s",),
            fires=(_drill("105s", "8d 0h 0m 5s"),),
        ),
        Scenario(
            name="scrapes fail after an old drill",
            series={_PROVEN: "-691300x11 stale _x60", _DRILL_FAILED: "0x60"},
            quiet=("125s",),
            fires=(_drill("110s", "8d 0h 3m 30s"),),
        ),
        Scenario(
            name="a drill fails and the next one passes",
            interval="1m",
            series={
                'observatory_restore_drill_proven_timestamp_seconds{stack="test",job="node"}': "0x9 600x20",
                'observatory_restore_drill_failed{stack="test",job="node"}': "0x4 1x4 0x20",
            },
            quiet=("4m", "12m"),
            fires=(
                Firing(
                    at="6m",
                    description=(
                        "The newest state that a restore drill has proven is 6m 0s old, or the last drill failed."
                    ),
                ),
            ),
        ),
        Scenario(
            name="no drill passes for eight days",
            interval="1m",
            series={
                'observatory_restore_drill_proven_timestamp_seconds{stack="test",job="node"}': "-690000x40",
                'observatory_restore_drill_failed{stack="test",job="node"}': "0x40",
            },
            quiet=("10m",),
            fires=(
                Firing(
                    at="25m",
                    description=(
                        "The newest state that a restore drill has proven is 8d 0h 5m 0s old, or the last drill failed."
                    ),
                ),
            ),
        ),
    ),
)

BACKUP_AND_RECOVERY = (ARCHIVE_GAP, BACKUP_DAMAGED, BACKUP_STALE, ARCHIVE_FAILING, DRILL_STALE)
