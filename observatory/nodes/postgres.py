"""PostgreSQL with TimescaleDB, run by Patroni: there is no second postgresql.conf.

Parameters that every node must share (Patroni takes those only from the distributed configuration) are in
`shared_parameters`; all others are node-local and take effect by a reload of Patroni.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from observatory.documents.logins import POOLED_ROLES, PROVISIONER, logins_of
from observatory.nodes.pgbackrest import BIN, S3Repository, archive_command, pgbackrest_directories, pgbackrest_files
from observatory.nodes.tls import authority_file, certificate_file, key_file
from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, Unit, yaml_text
from observatory.settings import StackSettings

SERVER = "postgres"  # of the certificate
SCOPE = "observatory"  # Patroni's name of the cluster in its configuration store
STORE_CLIENT = "patroni"  # of the certificate that Patroni shows to etcd
MONITOR_ROLE = "monitor"  # that the exporters log in as
OWNER_ROLE = "migrator"  # that owns the schema
API_USER = "operator"  # the user who may change anything over Patroni's REST API; reading needs no user
OPERATING_SYSTEM_USERS = ("observatory", "root")  # that may log in as postgres or migrator, by peer on the socket only

ARCHIVE_TIMEOUT = "60s"  # RPO: a lost machine loses the WAL of this time at most

# Failover timing in seconds, measured as the best trade of outage against false failovers: 0 of the acknowledged
# writes lost in 129 rounds, 18-20 s of outage for a killed node.
TTL, LOOP_WAIT, RETRY_TIMEOUT = 20, 5, 5


def shared_parameters(settings: StackSettings) -> dict[str, Any]:
    """Return the parameters that must be equal on primary and standbys; they live in Patroni's configuration store."""
    return {
        "max_connections": settings.database.max_connections,
        "max_worker_processes": 24,  # 8 is too few for TimescaleDB with several databases
        "max_locks_per_transaction": 256,  # one lock for each chunk that a query touches
        "max_wal_senders": 10,
        "max_replication_slots": 10,
        "wal_level": "replica",
        "wal_log_hints": "on",  # pg_rewind
    }


def dynamic_configuration(settings: StackSettings) -> dict[str, Any]:
    """Return Patroni's cluster-wide configuration, as `PATCH /config` takes it."""
    return {
        "ttl": TTL,
        "loop_wait": LOOP_WAIT,
        "retry_timeout": RETRY_TIMEOUT,
        "primary_start_timeout": 0,
        "failsafe_mode": True,
        "postgresql": {"use_pg_rewind": True, "parameters": shared_parameters(settings)},
    }


def node_parameters(settings: StackSettings, paths: Paths) -> dict[str, Any]:
    """Return the parameters of one node; none needs to agree with another node's."""
    return {
        "unix_socket_directories": paths.postgres_socket,
        # Not pgaudit: with it a COPY into a hypertable crashes the server (timescale/timescaledb#7667; so does 2.19.3).
        "shared_preload_libraries": "timescaledb,pg_stat_statements,pg_cron",
        "timescaledb.telemetry_level": "off",
        "timescaledb.max_background_workers": 8,
        "cron.database_name": settings.database.name,
        "cron.use_background_workers": "on",  # a job needs no login, so no password and no line in pg_hba.conf
        "cron.max_running_jobs": 5,
        # A row for each run would be WAL twice a minute, so that a stack without traffic archived a segment a minute.
        # Jobs that fail are in the log.
        "cron.log_run": "off",
        "cron.log_statement": "off",
        "shared_buffers": f"{settings.database.shared_buffers_mb}MB",
        "ssl": "on",
        "ssl_cert_file": certificate_file(paths, SERVER),
        "ssl_key_file": key_file(paths, SERVER),
        "password_encryption": "scram-sha-256",
        "idle_in_transaction_session_timeout": "5min",
        # The statement of a program that was killed, and its locks, end with it; also behind the pooler.
        "client_connection_check_interval": "5s",
        "archive_mode": "on",
        "archive_command": archive_command(paths),
        "archive_timeout": ARCHIVE_TIMEOUT,
        "track_io_timing": "on",
        "log_destination": "stderr",
        "logging_collector": "off",
        # Who changed what: CREATE, ALTER, DROP, GRANT and REVOKE, of roles too (ADR: no pgaudit).
        "log_statement": "ddl",
        # The SQLSTATE (%e) precedes what a client can choose: the collector counts failed logins by it.
        "log_line_prefix": "%m [%p] %e %q%u@%d %a ",
        "log_lock_waits": "on",
        "log_checkpoints": "on",
        # Prompts and passwords must not reach the log: not as the text of a failed, slow or waiting statement, as
        # DETAIL, as CONTEXT (COPY quotes its line there) or as a parameter. `ensure_database` keeps errors themselves
        # out of it, which quote values.
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
        "log_min_duration_statement": -1,
        "log_min_duration_sample": -1,
        "log_transaction_sample_rate": 0,
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
        # Constants of such statements are not replaced by parameters: a verifier, or a text in CREATE TABLE AS.
        "pg_stat_statements.track_utility": "off",
    }


def host_based_authentication(settings: StackSettings, host: Host = LOOPBACK) -> list[str]:
    """Return pg_hba.conf: each login from where it belongs, to its database. PostgreSQL rejects all others.

    Operators and the exporter use peer on the socket. The logins of the pooler use it too: only the daemons' user can
    enter its directory. Administrators and the provisioner use SCRAM over TLS, from this machine or from the operators'
    networks of the host, as the superuser does where there are such networks.
    """
    database = f'"{settings.database.name}"'  # in quotes no name is a keyword
    pooled, direct = ",".join(logins_of(*POOLED_ROLES)), ",".join([*logins_of("admin"), PROVISIONER])
    return [
        "local all postgres peer map=operators",
        f"local {database} {OWNER_ROLE},{MONITOR_ROLE} peer map=operators",
        f"local {database} {pooled} scram-sha-256",
        *(f"hostssl {database} {direct} {network} scram-sha-256" for network in ("127.0.0.1/32", *host.operators)),
        *(f"hostssl all postgres {network} scram-sha-256" for network in host.operators),
    ]


def ident_map() -> list[str]:
    """Return pg_ident.conf: the operator roles of each operating system user."""
    return [
        f"operators {user} {role}" for user in OPERATING_SYSTEM_USERS for role in ("postgres", OWNER_ROLE, MONITOR_ROLE)
    ]


def api_credentials_file(paths: Paths) -> str:
    """Return the path of Patroni's configuration file with the password of its REST API."""
    return f"{paths.config}/patroni/restapi.yaml"


def api_credentials(password: str) -> str:
    """Return the configuration by which Patroni's REST API requires `API_USER` and a password for every change.

    Without it any user of the machine could set a callback, which Patroni runs as the daemons' user.
    """
    authentication = {"username": API_USER, "password": password}
    return yaml_text({"restapi": {"authentication": authentication}})


def logins_file(paths: Paths) -> str:
    """Return the path of Patroni's configuration file with the superuser's password."""
    return f"{paths.config}/patroni/logins.yaml"


def logins(superuser_password: str) -> str:
    """Return the configuration by which Patroni sets the superuser's password, where operators connect over TCP."""
    superuser = {"username": "postgres", "password": superuser_password}
    return yaml_text({"postgresql": {"authentication": {"superuser": superuser}}})


def patroni(
    settings: StackSettings, paths: Paths, host: Host = LOOPBACK, *, buckets: Sequence[S3Repository] = ()
) -> Unit:
    """Return Patroni, which creates, starts and monitors this node's PostgreSQL, with the configuration of pgBackRest.

    Patroni merges all files of its directory; `api_credentials_file` and `logins_file` are secret. WAL is archived to
    the buckets, or to this machine's disks without any.
    """
    ports, directory = settings.ports, f"{paths.config}/patroni"
    config = _patroni_configuration(settings, paths, host)
    return Unit(
        name="patroni",
        command=("/usr/bin/patroni", directory),
        # The status is 200 as soon as the node has its lease back, which precedes PostgreSQL after a crash.
        ready=HttpReady(port=ports.patroni, path="/primary", says={"state": "running", "role": "primary"}),
        priority=20,
        ports={"ports.patroni": ports.patroni, "ports.postgres": ports.postgres},
        files={
            f"{directory}/patroni.yaml": yaml_text(config),
            **pgbackrest_files(settings, paths, buckets),
        },
        directories=(paths.postgres_socket, *pgbackrest_directories(settings, paths, buckets)),
        reload_signal="HUP",
        reload_rebinds=True,
        stop_signal="INT",  # Patroni stops PostgreSQL in fast mode and releases its lease
        stop_seconds=60,
        settle_seconds=90,
    )


def _patroni_configuration(settings: StackSettings, paths: Paths, host: Host) -> dict[str, Any]:
    """Return this node's part of Patroni's configuration, without secrets."""
    ports = settings.ports
    return {
        "scope": SCOPE,
        "name": "node1",
        "restapi": {"listen": f"{host.listen}:{ports.patroni}", "connect_address": f"{host.address}:{ports.patroni}"},
        "etcd3": {
            "host": f"127.0.0.1:{ports.etcd_client}",
            "protocol": "https",
            "cacert": authority_file(paths),
            "cert": certificate_file(paths, STORE_CLIENT),
            "key": key_file(paths, STORE_CLIENT),
        },
        "bootstrap": {
            "dcs": dynamic_configuration(settings),
            "initdb": [
                {"encoding": "UTF8"},
                {"locale": "C.UTF-8"},
                {"auth-local": "peer"},
                {"auth-host": "scram-sha-256"},
                "data-checksums",
                *([{"waldir": paths.wal}] if paths.wal else []),
            ],
        },
        "postgresql": {
            "listen": f"{host.listen}:{ports.postgres}",
            "connect_address": f"{host.address}:{ports.postgres}",
            "data_dir": f"{paths.data}/postgres",
            "bin_dir": BIN,
            "pgpass": f"{paths.run}/patroni-pgpass",
            "use_unix_socket": True,
            "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
            "parameters": node_parameters(settings, paths),
            "pg_hba": host_based_authentication(settings, host),
            "pg_ident": ident_map(),
        },
    }
