"""The `local` platform put together: machine, database, cache, backups, schema, fleets, traffic, monitoring, jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi

from components.access import TABLE_PROFILES
from components.certificates import Authority
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
from observatory.settings import FLEETS, LocalSettings

API_KEY_REQUESTS_PER_MINUTE = 60_000  # the first key also serves `make bench`


@dataclass(frozen=True, kw_only=True)
class LocalArgs:
    """Settings, the rollout and the access document, and the places on this machine.

    `home` holds what the stack owns, `rootfs` is the root filesystem, `releases` keeps the artifacts,
    `migrations` is the directory of migration files, `root` the checkout that holds all that.
    """

    settings: LocalSettings
    rollout: RolloutDocument
    logins: AccessDocument
    home: Path
    rootfs: Path
    releases: ReleaseStore
    migrations: Path
    root: Path


def declare(args: LocalArgs) -> dict[str, Any]:
    """Declare the stack and return its outputs."""
    settings, rollout = args.settings, args.rollout
    machine = Machine("machine", MachineArgs(home=args.home, rootfs=args.rootfs))
    authority = Authority("authority", common_name="LLM Observatory, local stack")
    database = Database(
        "database", DatabaseArgs(settings=settings, machine=machine, authority=authority, logins=args.logins)
    )
    schema = Schema(
        "schema",
        SchemaArgs(
            conninfo=database.owner_url,
            migrations=args.migrations,
            target=rollout.schema_target,
            roles=TABLE_PROFILES,
            service_conninfo=database.direct_url,
            needs=schema_needs(rollout, args.releases, missing_ok=pulumi.runtime.is_dry_run()),
            backup_home=machine.home,
            backup_rootfs=machine.rootfs,
        ),
        pulumi.ResourceOptions(depends_on=list(database.ready), deleted_with=machine),
    )
    cache = Cache("cache", CacheArgs(settings=settings, machine=machine))
    backups = Backups("backups", BackupsArgs(machine=machine, after=database.ready))
    fleets = {
        name: Fleet(
            name,
            FleetArgs(
                settings=settings,
                machine=machine,
                name=name,
                state=rollout.fleet(name),
                artifact=args.releases.artifact,
                database_login=database.login,
                cache_password=cache.password,
                after=(schema, *database.pooled, *cache.ready),
            ),
        )
        for name in FLEETS
    }
    traffic = Traffic(
        "traffic",
        TrafficArgs(
            settings=settings,
            machine=machine,
            authority=authority,
            fleets=fleets,
            weights=rollout.weights,
            out=rollout.draining,
        ),
    )
    monitoring = Monitoring(
        "monitoring",
        MonitoringArgs(
            settings=settings,
            machine=machine,
            stack=pulumi.get_stack(),
            database=database,
            cache=cache,
            fleets=fleets,
        ),
    )
    # Not deleted_with the machine: it is a process of its own.
    Scheduler(
        "scheduler",
        SchedulerArgs(settings=settings, machine=machine, root=args.root, stack=pulumi.get_stack()),
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
        "fleets": {
            name: {
                "size": settings.fleets.size,
                **rollout.fleet(name).model_dump(include={"version", "weight", "rolling"}, exclude_none=True),
            }
            for name in FLEETS
        },
        "active_fleet": rollout.active_fleet,
        "schema_version": schema.version,
        "backup_stores": backups.stores,
        "ca_file": database.ca_file,
    }
