"""The machines of an AWS stack: the units, packages and preparations of a database node and of a fleet's instance."""

from __future__ import annotations

from dataclasses import replace

from observatory.nodes.cloud_init import (
    MACHINE,
    PROGRAM_DIRECTORY,
    Mount,
    Oneshot,
    nvme_device,
    secrets_oneshot,
    secrets_timer,
    user_data,
)
from observatory.nodes.daemons import (
    DatabaseMachine,
    FleetMachine,
    database_units,
    fleet_units,
    memory_limits,
    packaged_services,
    packages,
)
from observatory.nodes.host_jobs import host_jobs
from observatory.nodes.pgbackrest import S3Repository, command, settings_file
from observatory.nodes.pooler_console import RECONNECT, console_command, not_reconnected
from observatory.nodes.systemd import USER, service_name, writable
from observatory.nodes.timers import timer_files
from observatory.nodes.unit import Host, Paths
from observatory.settings import AwsSettings, FleetName

WAL_VOLUME = "/var/lib/observatory-wal"
DATABASE = replace(MACHINE, wal=f"{WAL_VOLUME}/pg_wal")
FLEET = replace(MACHINE, data="/var/lib/observatory-storage")
ANY = "0.0.0.0"  # noqa: S104 - the security group limits who can connect

COMMON_PACKAGES = ("awscli", "ca-certificates", "curl", "python3")
BACKUP_PROGRAM = "backup_repository.py"
BACKUP_OPTIONS = {
    "backup-full": ("--backup", "full"),
    "backup-differential": ("--backup", "diff"),
    "backup-check": (),
    "backup-contents": ("--contents",),
}
"""The options of `BACKUP_PROGRAM` for each scheduled job that runs on the database's machine."""


def database_user_data(
    settings: AwsSettings,
    *,
    address: str,
    secret: str,
    data_volume: str,
    wal_volume: str,
    buckets: tuple[S3Repository, ...],
    cache_url: str,
) -> str:
    """Return the user data of a database node.

    Args:
        settings: the stack's.
        address: of the machine.
        secret: ARN of its secret files.
        data_volume: id of the volume that holds PostgreSQL's data.
        wal_volume: id of the volume that holds its WAL.
        buckets: where backups and WAL go.
        cache_url: the cache's address, for its exporter.
    """
    region = settings.account.region
    machine = DatabaseMachine(
        settings=settings,
        paths=DATABASE,
        host=Host(listen=ANY, address=address, operators=(str(settings.operations_vpc.cidr),)),
        volumes=(DATABASE.data, WAL_VOLUME, "/"),
        buckets=buckets,
        cache_url=cache_url,
    )
    secrets = secrets_oneshot(secret=secret, region=region, reloaded=("pgbouncer", "collector"))
    stanza = Oneshot(
        name="observatory-stanza.service",
        command=command(DATABASE, "stanza-create"),
        after=(service_name("patroni"),),
        user=USER,
        writable=writable(DATABASE),
        retry=True,  # until PostgreSQL accepts connections
    )
    return user_data(
        database_units(machine),
        paths=DATABASE,
        region=region,
        packages=(*COMMON_PACKAGES, *packages("database")),
        masked=[f"{name}.service" for name in packaged_services("database")],
        programs=("machine_secrets.py", BACKUP_PROGRAM),
        oneshots=(secrets, stanza),
        memory=memory_limits("database"),
        mounts=(
            Mount(device=nvme_device(data_volume), directory=DATABASE.data),
            Mount(device=nvme_device(wal_volume), directory=WAL_VOLUME),
        ),
        files={**backup_timers(settings, DATABASE), **secrets_timer(secrets)},
    )


def backup_timers(settings: AwsSettings, paths: Paths) -> dict[str, str]:
    """Return the services and timers that make and check backups at the stack's times, by path."""
    files = {}
    program = ("/usr/bin/python3", "-I", f"{PROGRAM_DIRECTORY}/{BACKUP_PROGRAM}")
    for job in host_jobs(settings):
        if job.name in BACKUP_OPTIONS:
            line = (*program, *BACKUP_OPTIONS[job.name], settings_file(paths))
            after = (service_name("patroni"),)
            files.update(timer_files(job, command=line, user=USER, after=after, writable=writable(paths)))
    return files


def pooler_warning(port: int) -> str:
    """Return the warning after migrations: the pooler's console is reached on the database's machine only."""
    command = ("sudo", "-u", USER, *console_command(DATABASE, port, RECONNECT))
    return not_reconnected("the database's machine", "its console is reached on its machine only", command)


def fleet_user_data(
    settings: AwsSettings,
    *,
    fleet: FleetName,
    secret: str,
    document: str,
    database: str,
    cache_url: str,
) -> str:
    """Return the user data of a fleet's instances.

    Args:
        settings: the stack's.
        fleet: that the instances belong to.
        secret: ARN of its secret files.
        document: `s3://` URL of the rollout document, which has the release that the fleet runs.
        database: address of the pooler.
        cache_url: the cache's address.
    """
    region = settings.account.region
    machine = FleetMachine(
        settings=settings, paths=FLEET, host=Host(listen=ANY), fleet=fleet, database=database, cache_url=cache_url
    )
    options = ("--document", document, "--releases", f"s3://{settings.release_bucket}", "--region", region)
    place = ("--fleet", fleet, "--directory", f"{FLEET.releases}/{fleet}")
    secrets = secrets_oneshot(secret=secret, region=region)  # the service reads its login for each connection
    release = Oneshot(
        name="observatory-release.service",
        command=("/usr/bin/python3", "-I", f"{PROGRAM_DIRECTORY}/fleet_release.py", *options, *place),
        writable=("/opt",),  # where releases are, below directories that it makes
    )
    return user_data(
        fleet_units(machine),
        paths=FLEET,
        region=region,
        packages=(*COMMON_PACKAGES, *packages("fleet")),
        masked=[f"{name}.service" for name in packaged_services("fleet")],
        programs=("machine_secrets.py", "fleet_release.py"),
        oneshots=(secrets, release),
        memory=memory_limits("fleet"),
        files=secrets_timer(secrets),
    )
