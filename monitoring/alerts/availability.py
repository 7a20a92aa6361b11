"""Alerts on the availability of the database, its exporters, the service and its instances.

Thresholds are the same on every stack. Patroni restarts a killed PostgreSQL in 3 to 6 s. After 20 s without a response
it does not recover by itself. `last_over_time` bridges a failed scrape, which would restart the `for` period.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import UP, balancer_page, logs, superuser
from monitoring.alerts.scenarios import BRIDGE, crossing, gauge, vanishing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step
from monitoring.scrape_jobs import JOBS

_STORAGE = 'job="storage"'
_API = 'route=~"/v1/.+"'
OUTLASTING = "1m"  # a cause outlasts its consequences, or those would be sent when its inhibition ends
ALL_UP = {f'up{{stack="test",job="{job.name}",instance="one"}}': "1x60" for job in JOBS}
_COLLECTOR = 'pg_scrape_collector_success{{stack="test",job="postgres",instance="{}",collector="wal"}}'

_PGBACKREST = 'pgbackrest_exporter_status{stack="test",job="pgbackrest",instance="one",stanza="all-stanzas"}'


def _database_down(scope: Scope) -> str:
    return f"last_over_time({scope.select('pg_up')}[{BRIDGE}]) == 0"


def _exporter_down(scope: Scope) -> str:
    """Return an expression for missing metrics: the series of a stopped exporter vanish except `up`, or all of them."""
    jobs = scope.scraped
    names = "|".join(job.name for job in jobs if job.elastic)
    fixed, elastic = scope.select("up", f'job!~"{names}"'), scope.select("up", f'job=~"{names}"')
    collectors, database = scope.select("pg_scrape_collector_success"), scope.select("pg_up")
    backups = scope.select("pgbackrest_exporter_status")
    jobs_without_target = [scope.select("up", f'job="{job.name}"') for job in jobs]
    conditions = (
        f"{fixed} == 0",
        f"sum by (stack, job) ({elastic}) == 0",
        # Without PostgreSQL every collector fails, and StorageDatabaseDown fires.
        f"({collectors} == 0 unless on (stack, instance) {database} == 0)",
        *(f"absent({selector})" for selector in jobs_without_target),
        f"{scope.select('pgbouncer_up')} == 0",
        # It asks pgBackRest each minute: one failure, as while its configuration is written, is none of two.
        f"max without (stanza) ({backups} == 0 and {backups} offset 1m == 0)",
        # A file of the host jobs that node_exporter cannot read: its series vanish, and the exporter itself is up.
        f'label_replace({scope.select("node_textfile_scrape_error")} == 1, "collector", "textfile", "", "")',
    )
    return "\nor ".join(conditions)


def _service_down(scope: Scope) -> str:
    """Return an expression for fleets that receive traffic without a ready instance; its value is their traffic weight.

    On AWS the balancer's metrics are in CloudWatch, with a delay of minutes. There, a fleet receives traffic if it had
    requests within the last hour, and an instance is down if Prometheus cannot scrape it.
    """
    if scope.platform == "aws":
        requests = f"increase({scope.select('storage_http_requests_total', _API)}[1h])"
        share = f"100 * sum by (stack, fleet) ({requests}) / on (stack) group_left sum by (stack) ({requests})"
        return f"{share} > 0\nunless on (stack, fleet) sum by (stack, fleet) ({_instances_up(scope)}) > 0"
    weight = scope.select("storage_fleet_weight")
    ready = scope.select("haproxy_backend_status", 'state="UP"', 'fleet!=""')
    return (
        f"max by (stack, fleet) (last_over_time({weight}[{BRIDGE}])) > 0\n"
        f"and on (stack, fleet) max by (stack, fleet) (last_over_time({ready}[{BRIDGE}])) == 0"
    )


def _instances_up(scope: Scope) -> str:
    return f"max_over_time({scope.select('up', _STORAGE)}[15s])"  # tolerates one failed scrape


def _instance_down(scope: Scope) -> str:
    """Return an expression for instances that fail their health checks; maintenance is another state.

    On AWS a new machine does not answer while it installs its packages, after each launch by the scaling. It counts
    once it has answered, or when it has not for a quarter of an hour.
    """
    if scope.platform == "aws":
        up = scope.select("up", _STORAGE)

        def named(series: str) -> str:
            return f'label_replace({series}, "server", "$1", "instance", "(.+)")'

        return (
            f"max by (stack, fleet, server) (1 - {named(_instances_up(scope))}) == 1\n"
            f"and on (stack, fleet, server) ({named(f'max_over_time({up}[1h])')} == 1\n"
            f"or {named(f'last_over_time({up}[{BRIDGE}] offset 15m)')} == 0)"
        )
    down = scope.select("haproxy_server_status", 'state="DOWN"', 'fleet!=""')
    return f"max by (stack, fleet, server) (last_over_time({down}[{BRIDGE}])) == 1"


def _read_only(scope: Scope) -> str:
    value = scope.select("pg_settings_default_transaction_read_only")
    return f"max by (stack, instance) (last_over_time({value}[{BRIDGE}])) == 1"


def _primaries(scope: Scope) -> str:
    """Return an expression for the number of primaries; a failed scrape is not bridged, or a failover had two."""
    return f"sum by (stack) ({scope.select('pg_replication_is_replica')} == bool 0) != 1"


def _replica_disconnected(scope: Scope) -> str:
    """Return an expression for slots of the primary: Patroni keeps slots on replicas too, which nothing uses."""
    active = f"last_over_time({scope.select('pg_replication_slot_slot_is_active')}[{BRIDGE}])"
    replica = f"last_over_time({scope.select('pg_replication_is_replica')}[{BRIDGE}])"
    return f"max by (stack, slot_name) ({active}\nand on (stack, instance) {replica} == 0) == 0"


DATABASE_DOWN = Alert(
    name="StorageDatabaseDown",
    expression=_database_down,
    pending="20s",
    keep_firing=OUTLASTING,
    severity="critical",
    component="database",
    category="availability",
    summary="PostgreSQL does not answer",
    description="PostgreSQL behind {{ $labels.instance }} refuses its exporter (pg_up is {{ $value }}).",
    runbook=Runbook(
        meaning=(
            "The exporter runs but cannot connect to PostgreSQL, and Patroni did not restart PostgreSQL within 20 s."
        ),
        impact="All writes and reads fail. Clients receive 503 and must send their requests again.",
        diagnosis=(
            Step("`observatory status`: check whether `patroni` and `postgresql` run."),
            Step(
                'Patroni\'s state: `curl -s http://127.0.0.1:18008/patroni`. With `"pause": true`, '
                "Patroni restarts nothing."
            ),
            Step("PostgreSQL's messages are at the end of `log/patroni.log` in the stack's home."),
            Step("Check the disk of the data directory. PostgreSQL stops when it is full."),
        ),
        remedy=(
            Step(
                "Patroni starts PostgreSQL unless it is paused. Resume it (it says so if it is not paused):",
                ("observatory exec patroni -- patronictl -c /srv/etc/patroni resume --wait || true",),
            ),
            Step("If Patroni or etcd is down, this starts it:", ("observatory up",)),
            Step("If the disk is full: free space first, then run `observatory up`. Never delete files in `pg_wal`."),
            Step(
                "If PostgreSQL cannot start because its files are lost or damaged: a rollback needs a running server. "
                "Recover a local stack from a backup repository, which is first copied out of its home: "
                "[a database that does not start](../backups.md#a-database-that-does-not-start)."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Pause Patroni and kill the postmaster.",
    scenarios=(
        Scenario(
            name="PostgreSQL is down",
            series={'pg_up{stack="test",instance="one"}': "1x5 0x30"},
            quiet=("25s", "45s"),
            fires=(
                Firing(
                    at="1m",
                    labels={"instance": "one"},
                    description="PostgreSQL behind one refuses its exporter (pg_up is 0).",
                ),
            ),
        ),
        *gauge(
            'pg_up{stack="test",instance="one"}',
            at=1,
            beyond=0,
            pending=20,
            keep=60,
            labels={"instance": "one"},
            description="PostgreSQL behind one refuses its exporter (pg_up is 0).",
        ),
        Scenario(
            name="Patroni restarts PostgreSQL within 10 s",
            series={'pg_up{stack="test",instance="one"}': "1x5 0 0 1x30"},
            quiet=("30s", "40s", "1m", "2m"),
        ),
        Scenario(
            name="scrapes fail while PostgreSQL is down",
            series={'pg_up{stack="test",instance="one"}': "1x5 0 0 _ _ 0 _ 0x30"},
            fires=(
                Firing(
                    at="55s",
                    labels={"instance": "one"},
                    description="PostgreSQL behind one refuses its exporter (pg_up is 0).",
                ),
            ),
        ),
        Scenario(
            name="the database of another stack is down",
            series={'pg_up{stack="other",instance="one"}': "0x30"},
            quiet=("2m",),
        ),
    ),
)

EXPORTER_DOWN = Alert(
    name="StorageExporterDown",
    expression=_exporter_down,
    pending="1m",
    severity="critical",
    component="monitoring",
    category="availability",
    summary="A part of the stack is not measured: its alerts are blind",
    description=(
        "Job {{ $labels.job }}"
        "{{ with $labels.instance }} at {{ . }}{{ end }}"
        "{{ with $labels.collector }}, collector {{ . }}{{ end }}"
        " gives no metrics (value {{ $value }})."
    ),
    runbook=Runbook(
        meaning=(
            "Prometheus cannot scrape an exporter, a collector of the exporter fails, or pgBouncer's console or "
            "pgBackRest does not answer its exporter."
        ),
        impact="No alert on the metrics of this job can fire. The monitored daemon may be down, too.",
        diagnosis=(
            Step(
                "`observatory status`: check whether the exporter is ready. `etcd`, `patroni`, `haproxy` "
                "and `storage` expose metrics themselves."
            ),
            Step("Prometheus' page `/targets` shows the error of the last scrape."),
            Step("If the description names a collector: `log/postgres-exporter.log` has the failed query."),
            Step(
                "If it names the job pgbackrest: `log/pgbackrest-exporter.log` has pgBackRest's exit status, and "
                "`observatory backup verify` its message."
            ),
            Step(
                "If it names the collector textfile: `log/node-exporter.log` has the file that cannot be read. The "
                "host jobs write these files, with their backups, heartbeats and certificates, to `data/textfile`."
            ),
        ),
        remedy=(
            Step("Start missing daemons:", ("observatory up",)),
            Step("If a collector lacks a privilege: make the role `monitor` a member of `pg_monitor`."),
            Step("Remove a file of the collector textfile that cannot be read; its job writes it again."),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Stop the exporter of PostgreSQL.",
    scenarios=(
        Scenario(
            name="an exporter stops",
            series={**ALL_UP, 'up{stack="test",job="postgres",instance="one"}': "1x5 0x55"},
            quiet=("30s", "1m"),
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "postgres", "instance": "one"},
                    description="Job postgres at one gives no metrics (value 0).",
                ),
            ),
        ),
        Scenario(
            name="an exporter is back",
            series={
                **ALL_UP,
                'up{stack="test",job="postgres",instance="one"}': "0x24 1x35",
                _COLLECTOR.format("one"): "1x60",
            },
            quiet=("55s", "125s"),
            fires=tuple(
                Firing(
                    at=at,
                    labels={"job": "postgres", "instance": "one"},
                    description="Job postgres at one gives no metrics (value 0).",
                )
                for at in ("1m", "2m")
            ),
        ),
        Scenario(
            name="no job has a target",
            series={},
            quiet=("55s",),
            fires=tuple(
                Firing(at="1m", labels={"job": job.name}, description=f"Job {job.name} gives no metrics (value 1).")
                for job in JOBS
            ),
        ),
        Scenario(
            name="a collector fails while another PostgreSQL is down",
            series={
                **ALL_UP,
                'pg_up{stack="test",job="postgres",instance="one"}': "0x60",
                'pg_up{stack="test",job="postgres",instance="two"}': "1x60",
                _COLLECTOR.format("two"): "0x60",
            },
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "postgres", "instance": "two", "collector": "wal"},
                    description="Job postgres at two, collector wal gives no metrics (value 0).",
                ),
            ),
        ),
        Scenario(
            name="one of two storage instances is down, which StorageInstanceDown covers",
            series={**ALL_UP, 'up{stack="test",job="storage",instance="two"}': "0x60"},
            quiet=("2m", "4m"),
        ),
        Scenario(
            name="every storage instance is down",
            series={**ALL_UP, 'up{stack="test",job="storage",instance="one"}': "0x60"},
            fires=(Firing(at="2m", labels={"job": "storage"}, description="Job storage gives no metrics (value 0)."),),
        ),
        Scenario(
            name="one collector fails",
            series={
                **ALL_UP,
                'pg_up{stack="test",job="postgres",instance="one"}': "1x60",
                'pg_scrape_collector_success{stack="test",job="postgres",instance="one",collector="wal"}': "0x60",
            },
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "postgres", "instance": "one", "collector": "wal"},
                    description="Job postgres at one, collector wal gives no metrics (value 0).",
                ),
            ),
        ),
        Scenario(
            name="pgBouncer's console does not answer its exporter",
            series={**ALL_UP, 'pgbouncer_up{stack="test",job="pgbouncer",instance="one"}': "1x5 0x53"},
            quiet=("30s", "1m"),
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "pgbouncer", "instance": "one"},
                    description="Job pgbouncer at one gives no metrics (value 0).",
                ),
            ),
        ),
        Scenario(
            name="pgBackRest does not answer its exporter for three minutes",
            series={**ALL_UP, _PGBACKREST: "1x5 0x35 1x18"},
            quiet=("145s", "210s"),
            fires=tuple(
                Firing(
                    at=at,
                    labels={"job": "pgbackrest", "instance": "one"},
                    description="Job pgbackrest at one gives no metrics (value 0).",
                )
                for at in ("150s", "205s")
            ),
        ),
        Scenario(
            name="pgBackRest does not answer its exporter once",
            series={**ALL_UP, _PGBACKREST: "1x5 0x12 1x41"},
            quiet=("90s", "95s", "150s", "4m"),
        ),
        Scenario(
            name="a file of the host jobs cannot be read",
            series={**ALL_UP, 'node_textfile_scrape_error{stack="test",job="node",instance="one"}': "0x6 1x53"},
            quiet=("30s", "1m"),
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "node", "instance": "one", "collector": "textfile"},
                    description="Job node at one, collector textfile gives no metrics (value 1).",
                ),
            ),
        ),
        Scenario(
            name="collectors fail because PostgreSQL is down",
            series={
                **ALL_UP,
                'pg_up{stack="test",job="postgres",instance="one"}': "0x60",
                'pg_scrape_collector_success{stack="test",job="postgres",instance="one",collector="wal"}': "0x60",
            },
            quiet=("2m", "4m"),
        ),
    ),
)

SERVICE_DOWN = Alert(
    name="StorageServiceDown",
    expression=_service_down,
    pending="15s",
    keep_firing="15s",
    severity="critical",
    component="service",
    category="availability",
    rollback=True,
    summary="A fleet that gets traffic has no ready instance",
    description="Fleet {{ $labels.fleet }} gets {{ $value }} % of the requests and has no instance that is ready.",
    runbook=Runbook(
        meaning="HAProxy sends requests to a fleet, and none of its instances passes `/health/ready`.",
        impact=(
            "If the other fleet has a share of the traffic too, it gets the requests of this one. Otherwise they fail "
            "with 503."
        ),
        diagnosis=(
            Step("`observatory status`: check which instances run and which are ready."),
            Step("Check whether StorageDatabaseDown fires. Instances are not ready without the database."),
            Step(
                "`log/storage-<fleet>-<n>.log` in the stack's home has the reason why an instance is not ready or "
                "restarts."
            ),
            Step("The balancer (`ports.balancer_stats`) shows the traffic weights.", (balancer_page("/weights"),)),
        ),
        remedy=(
            Step("During a deployment the alert starts a rollback."),
            Step(
                "If the other fleet is healthy: `observatory rollback --method blue-green --emergency` moves the "
                "traffic there."
            ),
            Step("Start missing instances:", ("observatory up",)),
        ),
        escalation=escalation.SERVICE,
    ),
    fault="Stop both fleets.",
    scenarios=(
        Scenario(
            name="the active fleet is down",
            series={
                'storage_fleet_weight{stack="test",fleet="blue"}': "100x60",
                'storage_fleet_weight{stack="test",fleet="green"}': "0x60",
                'haproxy_backend_status{stack="test",fleet="blue",state="UP"}': "1x5 0x55",
                'haproxy_backend_status{stack="test",fleet="blue",state="DOWN"}': "0x5 1x55",
                'haproxy_backend_status{stack="test",fleet="green",state="UP"}': "1x60",
            },
            quiet=("25s", "40s"),
            fires=(
                Firing(
                    at="1m",
                    labels={"fleet": "blue"},
                    description="Fleet blue gets 100 % of the requests and has no instance that is ready.",
                ),
            ),
        ),
        *gauge(
            'haproxy_backend_status{stack="test",fleet="blue",state="UP"}',
            at=1,
            beyond=0,
            pending=15,
            keep=15,
            labels={"fleet": "blue"},
            description="Fleet blue gets 100 % of the requests and has no instance that is ready.",
            others={
                'storage_fleet_weight{stack="test",fleet="blue"}': "100x200",
                'haproxy_backend_status{stack="test",fleet="blue",state="DOWN"}': "1x200",
                'haproxy_backend_status{stack="test",proxy="stats",state="UP"}': "1x200",
            },
        ),
        *gauge(
            'storage_fleet_weight{stack="test",fleet="blue"}',
            at=0,
            beyond=1,
            pending=15,
            keep=15,
            labels={"fleet": "blue"},
            description="Fleet blue gets 1 % of the requests and has no instance that is ready.",
            others={
                'haproxy_backend_status{stack="test",fleet="blue",state="UP"}': "0x200",
                'storage_fleet_weight{stack="test",fleet="green"}': "99x200",
                'haproxy_backend_status{stack="test",fleet="green",state="UP"}': "1x200",
            },
        ),
        Scenario(
            name="a backend that is no fleet is down",
            series={
                'storage_fleet_weight{stack="test"}': "1x60",
                'haproxy_backend_status{stack="test",proxy="other",state="UP"}': "0x60",
            },
            quiet=("2m",),
        ),
        Scenario(
            name="the idle fleet is down",
            series={
                'storage_fleet_weight{stack="test",fleet="blue"}': "100x60",
                'storage_fleet_weight{stack="test",fleet="green"}': "0x60",
                'haproxy_backend_status{stack="test",fleet="blue",state="UP"}': "1x60",
                'haproxy_backend_status{stack="test",fleet="green",state="UP"}': "0x60",
            },
            quiet=("1m", "4m"),
        ),
        Scenario(
            name="a canary with traffic weight 5 is down",
            series={
                'storage_fleet_weight{stack="test",fleet="blue"}': "95x60",
                'storage_fleet_weight{stack="test",fleet="green"}': "5x60",
                'haproxy_backend_status{stack="test",fleet="blue",state="UP"}': "1x60",
                'haproxy_backend_status{stack="test",fleet="green",state="UP"}': "0x60",
            },
            fires=(
                Firing(
                    at="1m",
                    labels={"fleet": "green"},
                    description="Fleet green gets 5 % of the requests and has no instance that is ready.",
                ),
            ),
        ),
    ),
)

INSTANCE_DOWN = Alert(
    name="StorageInstanceDown",
    expression=_instance_down,
    pending="15s",
    keep_firing="15s",
    severity="warning",
    component="service",
    category="availability",
    rollback=True,
    summary="An instance of the storage service fails its checks",
    description=(
        "Instance {{ $labels.server }} of fleet {{ $labels.fleet }} fails the balancer's checks (value {{ $value }})."
    ),
    runbook=Runbook(
        meaning="HAProxy sends no requests to an instance, because its `/health/ready` fails or does not respond.",
        impact="The fleet has one instance less. If none is left, StorageServiceDown fires.",
        diagnosis=(
            Step("`observatory status`: check whether the instance runs."),
            Step("`log/storage-<fleet>-<n>.log` in the stack's home has the reason why it is not ready or restarts."),
            Step(
                "The balancer (`ports.balancer_stats`) shows the result of its last check, in the column `last_chk`.",
                (balancer_page("/;csv"),),
            ),
        ),
        remedy=(
            Step(
                "The supervisor restarts a daemon that ends. This starts a daemon that is missing:", ("observatory up",)
            ),
            Step("Put an instance that is out of service on purpose into maintenance, which does not fire this alert."),
        ),
        escalation=escalation.SERVICE,
    ),
    fault="Stop one instance.",
    scenarios=(
        Scenario(
            name="an instance is down",
            series={
                'haproxy_server_status{stack="test",fleet="blue",server="blue-1",state="DOWN"}': "0x5 1x55",
                'haproxy_server_status{stack="test",fleet="blue",server="blue-2",state="DOWN"}': "0x60",
            },
            quiet=("25s", "40s"),
            fires=(
                Firing(
                    at="1m",
                    labels={"fleet": "blue", "server": "blue-1"},
                    description="Instance blue-1 of fleet blue fails the balancer's checks (value 1).",
                ),
            ),
        ),
        *gauge(
            'haproxy_server_status{stack="test",fleet="blue",server="blue-1",state="DOWN"}',
            at=0,
            beyond=1,
            pending=15,
            keep=15,
            labels={"fleet": "blue", "server": "blue-1"},
            description="Instance blue-1 of fleet blue fails the balancer's checks (value 1).",
            others={'haproxy_server_status{stack="test",proxy="other",server="o",state="DOWN"}': "1x200"},
        ),
        Scenario(
            name="an instance is in maintenance",
            series={
                'haproxy_server_status{stack="test",fleet="blue",server="blue-1",state="DOWN"}': "0x60",
                'haproxy_server_status{stack="test",fleet="blue",server="blue-1",state="MAINT"}': "1x60",
            },
            quiet=("1m", "4m"),
        ),
    ),
)

_READ_ONLY_SERIES = 'pg_settings_default_transaction_read_only{stack="test",job="postgres",instance="one"}'

READ_ONLY = Alert(
    name="StorageDatabaseReadOnly",
    expression=_read_only,
    pending="15s",
    severity="critical",
    component="database",
    category="availability",
    summary="PostgreSQL accepts no writes",
    description="default_transaction_read_only of PostgreSQL behind {{ $labels.instance }} is on (value {{ $value }}).",
    runbook=Runbook(
        meaning="The server starts every transaction as read-only. An administrator or a script has set the parameter.",
        impact="All writes fail with SQLSTATE 25006. Reads work.",
        diagnosis=(
            Step(
                "Find where the value comes from: a file, ALTER SYSTEM, ALTER DATABASE or ALTER ROLE.",
                (
                    superuser(
                        "SELECT setting, source, sourcefile FROM pg_settings WHERE name = "
                        "$$default_transaction_read_only$$"
                    ).replace("$$", "\\$\\$"),
                ),
            ),
            Step("If the disk is nearly full, the setting may be on purpose: see StorageDiskCritical."),
        ),
        remedy=(
            Step(
                "Reset the parameter and load the configuration.",
                (superuser("ALTER SYSTEM RESET default_transaction_read_only"), superuser("SELECT pg_reload_conf()")),
            ),
            Step("If the value comes from Patroni's configuration: `patronictl edit-config` removes it."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="ALTER SYSTEM SET default_transaction_read_only = on.",
    scenarios=gauge(
        _READ_ONLY_SERIES,
        at=0,
        beyond=1,
        pending=15,
        labels={"instance": "one"},
        description="default_transaction_read_only of PostgreSQL behind one is on (value 1).",
        others={_READ_ONLY_SERIES.replace("one", "two"): "0x200"},
    ),
)

_IS_REPLICA = 'pg_replication_is_replica{{stack="test",job="postgres",instance="{}"}}'

PRIMARY_COUNT_WRONG = Alert(
    name="StoragePrimaryCountWrong",
    expression=_primaries,
    pending="30s",  # a failover has no primary for less
    severity="critical",
    component="database",
    category="availability",
    summary="The cluster has no primary, or more than one",
    description="{{ $value }} servers of {{ $labels.stack }} accept writes; expected 1.",
    runbook=Runbook(
        meaning="The number of PostgreSQL servers that are not replicas is not 1, for longer than a failover takes.",
        impact="Without a primary all writes fail. With two, rows are written to a timeline that will be discarded.",
        diagnosis=(
            Step(
                "Compare the roles that Patroni reports.",
                ("observatory exec patroni -- patronictl -c /srv/etc/patroni list",),
            ),
            Step("Read why Patroni did not promote or demote a server.", (logs("patroni"),)),
        ),
        remedy=(
            Step(
                (
                    "If Patroni is paused: resume. It demotes the server that does not hold the leader key, and "
                    "promotes a replica if none does."
                ),
                ("observatory exec patroni -- patronictl -c /srv/etc/patroni resume --wait",),
            ),
            Step(
                "A server that was promoted by hand does not become a replica by itself: `patronictl reinit` "
                "copies it from the leader."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Pause Patroni and promote a replica.",
    scenarios=(
        crossing(
            _IS_REPLICA.format("two"),
            at=1,
            beyond=0,
            pending=30,
            description="2 servers of test accept writes; expected 1.",
            others={_IS_REPLICA.format("one"): "0x200"},
        ),
        crossing(
            _IS_REPLICA.format("one"),
            at=0,
            beyond=1,
            pending=30,
            description="0 servers of test accept writes; expected 1.",
            others={_IS_REPLICA.format("two"): "1x200"},
        ),
        Scenario(
            name="the primary's machine is gone, and a replica is promoted",
            series={_IS_REPLICA.format("one"): "0x12 stale", _IS_REPLICA.format("two"): "1x16 0x60"},
            quiet=("1m50s", "2m", "3m"),
        ),
    ),
)

_SLOT = (
    'pg_replication_slot_slot_is_active{{stack="test",job="postgres",instance="{}",slot_name="{}",'
    'slot_type="physical"}}'
)
_OTHER_SLOTS = {
    _SLOT.format("one", "three"): "1x200",
    _SLOT.format("two", "one"): "0x200",  # on a replica
    _IS_REPLICA.format("two"): "1x200",
}

REPLICA_DISCONNECTED = Alert(
    name="StorageReplicaDisconnected",
    expression=_replica_disconnected,
    pending="1m",  # a restart of a replica takes less
    severity="warning",
    component="database",
    category="availability",
    summary="A replica does not receive WAL",
    description="Replication slot {{ $labels.slot_name }} is not in use (value {{ $value }}).",
    runbook=Runbook(
        meaning="The primary has a replication slot, and no replica or consumer is connected to it.",
        impact=(
            "The replica falls behind, and a failover has one candidate less. The primary keeps WAL for the slot, "
            "so its disk fills."
        ),
        diagnosis=(
            Step(
                "Compare the members that Patroni reports, and the WAL that each slot keeps.",
                (
                    "observatory exec patroni -- patronictl -c /srv/etc/patroni list",
                    superuser(
                        "SELECT slot_name, active, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), "
                        "restart_lsn)) FROM pg_replication_slots"
                    ),
                ),
            ),
        ),
        remedy=(
            UP,
            Step("A slot that nothing uses any more keeps WAL for ever. Drop it with `pg_drop_replication_slot`."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Stop the replica.",
    scenarios=(
        *gauge(
            _SLOT.format("one", "two"),
            at=1,
            beyond=0,
            pending=60,
            labels={"slot_name": "two"},
            description="Replication slot two is not in use (value 0).",
            others={**_OTHER_SLOTS, _IS_REPLICA.format("one"): "0x200"},
        ),
        vanishing(
            _IS_REPLICA.format("one"),
            beyond=0,
            pending=60,
            labels={"slot_name": "two"},
            description="Replication slot two is not in use (value 0).",
            others={**_OTHER_SLOTS, _SLOT.format("one", "two"): "0x200"},
        ),
    ),
)

AVAILABILITY = (
    DATABASE_DOWN,
    EXPORTER_DOWN,
    READ_ONLY,
    PRIMARY_COUNT_WRONG,
    REPLICA_DISCONNECTED,
    SERVICE_DOWN,
    INSTANCE_DOWN,
)
