"""Declares an AWS stack: network, keys, cache, database, backups, schema, fleets, traffic, monitoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as kubernetes
from pulumi_aws import iam, s3

from components.access import TABLE_PROFILES
from components.aws.backups import Backups, BackupsArgs
from components.aws.cache import Cache, CacheArgs
from components.aws.database import Database, DatabaseArgs
from components.aws.encryption import Encryption, EncryptionArgs
from components.aws.firewall import Firewall, FirewallArgs
from components.aws.fleets import Fleet, FleetArgs
from components.aws.foundation import Foundation
from components.aws.network import Network, NetworkArgs, database_address
from components.aws.policies import Allow, policy
from components.aws.traffic import Traffic, TrafficArgs
from components.certificates import Authority
from components.fleet_outputs import fleet_outputs
from components.monitoring import Monitoring, MonitoringArgs
from components.schema import Schema, SchemaArgs
from components.secrets import ApiKey
from observatory.documents.logins import AccessDocument
from observatory.documents.rollout import RolloutDocument
from observatory.settings import FLEETS, AwsSettings, FleetName

OPERATOR_REQUESTS_PER_MINUTE = 60_000  # without customers the first key also serves load tests
DELIVERY_REQUESTS_PER_MINUTE = 600  # a fleet's verification and a gate's synthetic requests


@dataclass(frozen=True, kw_only=True)
class AwsArgs:
    """The stack's name and settings, the rollout document, and directories of this machine.

    `home` has the files that clients here need, `migrations` the migration files.
    """

    stack: str
    settings: AwsSettings
    rollout: RolloutDocument
    logins: AccessDocument
    home: Path
    migrations: Path


def declare(args: AwsArgs) -> dict[str, Any]:
    """Declare the stack and return its outputs."""
    stack, settings, rollout = args.stack, args.settings, args.rollout
    account = aws.Provider("aws", region=settings.account.region, allowed_account_ids=[settings.account.id])
    cluster = kubernetes.Provider("kubernetes", context=settings.kubernetes.context)
    there = pulumi.ResourceOptions(providers=[account])

    network = Network("network", NetworkArgs(stack=stack, settings=settings), there)
    firewall = Firewall("firewall", FirewallArgs(stack=stack, settings=settings, vpc_id=network.vpc_id), there)
    encryption = Encryption("encryption", EncryptionArgs(stack=stack, settings=settings), there)
    authority = Authority("authority", common_name=f"LLM Observatory, stack {stack}")
    base = Foundation(stack=stack, settings=settings, network=network, firewall=firewall, encryption=encryption)
    cache = Cache("cache", CacheArgs(base=base), there)
    backups = Backups("backups", BackupsArgs(stack=stack, settings=settings, encryption=encryption), there)
    database = Database(
        "database",
        DatabaseArgs(base=base, home=args.home, authority=authority, backups=backups, cache=cache, logins=args.logins),
        there,
    )
    schema = _schema(args, database)
    document = _first_document(args, account)
    context = FleetContext(
        base=base,
        database=database,
        cache=cache,
        authority=authority,
        after=(schema, document, *database.pooled, *cache.ready),
    )
    fleets = {name: _fleet(args, name, context, there) for name in FLEETS}
    weights = {name: rollout.fleet(name).weight for name in FLEETS}
    traffic = Traffic(
        "traffic",
        TrafficArgs(base=base, fleets=fleets, weights=weights),
        there,
    )
    monitoring = Monitoring(
        "monitoring",
        MonitoringArgs(stack=stack, settings=settings, database_address=database_address(settings)),
        pulumi.ResourceOptions(providers=[cluster]),
    )
    _allow_discovery(settings, account)
    return {
        "service_url": traffic.service_url,
        "preview_url": traffic.preview_url,
        "database_url": database.url,
        "admin_database_url": database.admin_secret,
        "database_urls": pulumi.Output.all(**database.urls),
        "prometheus_url": monitoring.prometheus_url,
        "alertmanager_url": monitoring.alertmanager_url,
        "fleets": fleet_outputs(settings.fleets.size, rollout),
        "active_fleet": rollout.active_fleet,
        "schema_version": schema.version,
        "backup_stores": backups.stores,
        "ca_file": database.ca_file,
        "api_key": _first_key(settings, database, schema),
        "delivery": _delivery_outputs(settings, traffic, fleets),
    }


@dataclass(frozen=True, kw_only=True)
class FleetContext:
    """The resources that both fleets use and depend on."""

    base: Foundation
    database: Database
    cache: Cache
    authority: Authority
    after: tuple[pulumi.Resource, ...]


def _schema(args: AwsArgs, database: Database) -> Schema:
    return Schema(
        "schema",
        SchemaArgs(
            conninfo=database.owner_url,
            migrations=args.migrations,
            target=args.rollout.schema_target,
            roles=TABLE_PROFILES,
            service_conninfo=database.url,
            pooler_port=args.settings.ports.pgbouncer,
        ),
        pulumi.ResourceOptions(depends_on=list(database.ready)),
    )


def _fleet(args: AwsArgs, name: FleetName, context: FleetContext, there: pulumi.ResourceOptions) -> Fleet:
    return Fleet(
        name,
        FleetArgs(
            base=context.base,
            name=name,
            state=args.rollout.fleet(name),
            document=document_url(args.stack, args.settings),
            database_address=database_address(args.settings),
            database_login=context.database.login,
            cache_url=context.cache.url,
            cache_password=context.cache.password,
            authority_certificate=context.authority.certificate,
            after=context.after,
        ),
        there,
    )


def _delivery_outputs(settings: AwsSettings, traffic: Traffic, fleets: Mapping[FleetName, Fleet]) -> dict[str, Any]:
    """Return the outputs that a deployment needs: the rule with the weights, and each fleet's groups."""
    return {
        "rule": traffic.rule,
        "fleets": {
            name: {
                "group": fleet.group,
                "target_group": fleet.target_group,
                "preview_group": fleet.preview_group,
                "size": settings.fleets.size,
            }
            for name, fleet in fleets.items()
        },
    }


def document_url(stack: str, settings: AwsSettings) -> str:
    """Return the URL of the rollout document, which machines read at their start."""
    return f"s3://{settings.release_bucket}/{settings.rollout_key(stack)}"


def _first_document(args: AwsArgs, account: aws.Provider) -> s3.BucketObjectv2:
    """Write the first rollout document. Later only deployments change it; no `up` does."""
    return s3.BucketObjectv2(
        "rollout",
        bucket=args.settings.release_bucket,
        key=args.settings.rollout_key(args.stack),
        content=args.rollout.model_dump_json(indent=2),
        content_type="application/json",
        opts=pulumi.ResourceOptions(
            provider=account, protect=True, ignore_changes=["content", "contentType", "tags", "tagsAll"]
        ),
    )


def _allow_discovery(settings: AwsSettings, account: aws.Provider) -> None:
    """Allow the cluster's Prometheus to discover the fleets' machines; `Describe` actions cannot be limited further."""
    describe = Allow(actions=("ec2:DescribeInstances", "ec2:DescribeAvailabilityZones"), resources=("*",))
    iam.RolePolicy(
        "prometheus-discovery",
        role=settings.kubernetes.prometheus_role,
        policy=policy(describe),
        opts=pulumi.ResourceOptions(provider=account),
    )


def _first_key(settings: AwsSettings, database: Database, schema: Schema) -> pulumi.Output[str]:
    """Issue the key with which deployments verify fleets; customers have keys of their own."""
    internal = settings.traffic.internal
    key = ApiKey(
        "operator" if internal else "delivery",
        conninfo=database.owner_url,
        scopes=("read", "write"),
        rate_limit_rpm=OPERATOR_REQUESTS_PER_MINUTE if internal else DELIVERY_REQUESTS_PER_MINUTE,
        opts=pulumi.ResourceOptions(depends_on=[schema]),
    )
    return key.key
