"""Declares the `local` stack: machine, database, cache, backups, schema, fleets, traffic, monitoring, scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi

from components.access import TABLE_PROFILES
from components.certificates import Authority, MonitoringCertificate
from components.fleet_outputs import fleet_outputs
from components.local.backups import Backups, BackupsArgs
from components.local.cache import Cache, CacheArgs
from components.local.database import Database, DatabaseArgs
from components.local.fleets import Fleet, FleetArgs
from components.local.machine import Machine, MachineArgs
from components.local.monitoring import Monitoring, MonitoringArgs
from components.local.scheduler import Scheduler, SchedulerArgs
from components.local.traffic import Traffic, TrafficArgs
from components.schema import Schema, SchemaArgs
from components.secrets import ApiKey
from observatory.delivery.releases import ReleaseStore
from observatory.delivery.schema_requirements import schema_needs
from observatory.documents.logins import AccessDocument
from observatory.documents.rollout import RolloutDocument
from observatory.nodes.pgbackrest import outside_directories
from observatory.settings import FLEETS, FleetName, LocalSettings
from observatory.workspace import Workspace

API_KEY_REQUESTS_PER_MINUTE = 60_000  # the first key also serves `make bench`


@dataclass(frozen=True, kw_only=True)
class LocalArgs:
    """Settings, the rollout and the access document, and directories of this machine.

    `document` is the file of the rollout document, `home` has the stack's files, `rootfs` is the root filesystem,
    `releases` has the artifacts, `migrations` the migration files; `root` is the checkout.
    """

    settings: LocalSettings
    rollout: RolloutDocument
    document: Path
    logins: AccessDocument
    home: Path
    rootfs: Path
    releases: ReleaseStore
    migrations: Path
    root: Path


def declare(args: LocalArgs) -> dict[str, Any]:
    """Declare the stack and return its outputs."""
    stack = f"{pulumi.get_project()}/{pulumi.get_stack()}"
    repositories = outside_directories(args.settings)
    machine = Machine(
        "machine", MachineArgs(home=args.home, rootfs=args.rootfs, stack=stack, repositories=repositories)
    )
    authority = Authority("authority", common_name="LLM Observatory, local stack")
    trust = MonitoringCertificate.declare(authority)
    database = Database(
        "database", DatabaseArgs(settings=args.settings, machine=machine, authority=authority, logins=args.logins)
    )
    schema = _schema(args, machine, database)
    cache = Cache("cache", CacheArgs(settings=args.settings, machine=machine))
    backups = Backups("backups", BackupsArgs(machine=machine, after=database.ready))
    fleets = {name: _fleet(args, name, machine, database=database, cache=cache, schema=schema) for name in FLEETS}
    traffic = _traffic(args, machine, trust, fleets)
    monitoring = Monitoring(
        "monitoring",
        MonitoringArgs(
            settings=args.settings,
            root=args.root,
            machine=machine,
            trust=trust,
            stack=pulumi.get_stack(),
            database=database,
            cache=cache,
            fleets=fleets,
            traffic=traffic,
        ),
    )
    # Not deleted_with the machine: the scheduler is a process of its own.
    scheduler = Scheduler(
        "scheduler",
        SchedulerArgs(settings=args.settings, machine=machine, root=args.root, stack=pulumi.get_stack()),
        pulumi.ResourceOptions(depends_on=list(backups.ready)),
    )
    key = ApiKey(
        "operator",
        conninfo=database.owner_url,
        scopes=("read", "write"),
        rate_limit_rpm=API_KEY_REQUESTS_PER_MINUTE,
        opts=pulumi.ResourceOptions(depends_on=[schema], deleted_with=machine),
    )
    return {
        "service_url": traffic.service_url,
        "preview_url": traffic.preview_url,
        "api_key": key.key,
        "database_url": database.url,
        "admin_database_url": database.admin_url,
        "database_urls": pulumi.Output.all(**database.urls),
        "prometheus_url": monitoring.prometheus_url,
        "alertmanager_url": monitoring.alertmanager_url,
        "console_url": scheduler.console_url,
        "fleets": fleet_outputs(args.settings.fleets.size, args.rollout),
        "active_fleet": args.rollout.active_fleet,
        "schema_version": schema.version,
        "backup_stores": backups.stores,
        "ca_file": database.ca_file,
    }


def _schema(args: LocalArgs, machine: Machine, database: Database) -> Schema:
    return Schema(
        "schema",
        SchemaArgs(
            conninfo=database.owner_url,
            migrations=args.migrations,
            target=args.rollout.schema_target,
            roles=TABLE_PROFILES,
            service_conninfo=database.direct_url,
            needs=schema_needs(args.rollout, args.releases, missing_ok=pulumi.runtime.is_dry_run()),
            backup_home=machine.home,
            backup_rootfs=machine.rootfs,
            backup_reuse_minutes=args.settings.backups.reuse_minutes,
            drill_days=args.settings.backups.require_drill_days,
            drill_key_file=Workspace(root=args.root, stack=pulumi.get_stack()).signing_key_file,
            pooler_port=args.settings.ports.pgbouncer,
        ),
        pulumi.ResourceOptions(depends_on=list(database.ready), deleted_with=machine),
    )


def _fleet(
    args: LocalArgs, name: FleetName, machine: Machine, *, database: Database, cache: Cache, schema: Schema
) -> Fleet:
    return Fleet(
        name,
        FleetArgs(
            settings=args.settings,
            machine=machine,
            name=name,
            state=args.rollout.fleet(name),
            document=args.document,
            artifact=args.releases.artifact,
            start_seconds=args.releases.start_seconds,
            database_login=database.login,
            cache_password=cache.password,
            after=(schema, *database.pooled, *cache.ready),
        ),
    )


def _traffic(
    args: LocalArgs, machine: Machine, trust: MonitoringCertificate, fleets: Mapping[FleetName, Fleet]
) -> Traffic:
    return Traffic(
        "traffic",
        TrafficArgs(
            settings=args.settings,
            machine=machine,
            trust=trust,
            fleets=fleets,
            weights=args.rollout.weights,
            out=args.rollout.draining,
            document=args.document,
        ),
    )
