"""The cache of an AWS stack: ElastiCache for Valkey.

The database has all its data, so its operation is only patches and failover, which the managed service does. In return
clients must connect with TLS.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_aws import elasticache

from components.aws.foundation import Foundation
from components.aws.naming import tags
from components.secrets import Password

ENGINE_VERSION, FAMILY = "8.1", "valkey8"  # Debian 13's, that `local` runs, is 8.1 too


@dataclass(frozen=True, kw_only=True)
class CacheArgs:
    """The resources that the cache depends on."""

    base: Foundation


class Cache(pulumi.ComponentResource):
    """A read-through cache, which may be lost at any time. Outputs: `password` (secret), `url` without it."""

    def __init__(self, name: str, args: CacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Cache", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        settings, several = args.base.settings.cache, args.base.settings.cache.nodes > 1
        # ElastiCache takes no underscore in a token, and base64url's only other sign is the dash.
        self.password = Password("cache-password", opts=child).value.apply(lambda drawn: drawn.replace("_", "-"))
        subnets = elasticache.SubnetGroup(
            name, subnet_ids=args.base.network.private_subnet_ids, tags=tags(args.base.stack, name), opts=child
        )
        parameters = elasticache.ParameterGroup(
            name,
            family=FAMILY,
            parameters=[elasticache.ParameterGroupParameterArgs(name="maxmemory-policy", value="allkeys-lru")],
            tags=tags(args.base.stack, name),
            opts=child,
        )
        group = elasticache.ReplicationGroup(
            name,
            description=f"Cache of the LLM Observatory's stack {args.base.stack}",
            engine="valkey",
            engine_version=ENGINE_VERSION,
            node_type=settings.node_type,
            num_cache_clusters=settings.nodes,
            automatic_failover_enabled=several,
            multi_az_enabled=several,
            parameter_group_name=parameters.name,
            subnet_group_name=subnets.name,
            security_group_ids=[args.base.firewall.groups["cache"]],
            port=args.base.settings.ports.valkey,
            auth_token=self.password,
            transit_encryption_enabled=True,
            at_rest_encryption_enabled=True,
            kms_key_id=args.base.encryption.key_arn,
            snapshot_retention_limit=0,
            apply_immediately=True,
            tags=tags(args.base.stack, name),
            opts=child,
        )
        port = args.base.settings.ports.valkey
        self.url = pulumi.Output.concat("rediss://", group.primary_endpoint_address, f":{port}")
        self.ready: tuple[pulumi.Resource, ...] = (group,)
        self.register_outputs({"password": self.password, "url": self.url})
