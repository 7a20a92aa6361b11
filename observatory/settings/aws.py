"""Typed settings of a stack on AWS and Kubernetes: `platform: aws`.

Settings contain no secrets: receivers of alerts name a Kubernetes Secret, the program generates all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from observatory.settings.base import (
    Address,
    Backups,
    Database,
    FirstRollout,
    Fleets,
    Port,
    Ports,
    Settings,
    SharedSettings,
    Smarthost,
)

T = TypeVar("T")
Architecture = Literal["arm64", "amd64"]
OTHER_PARTITIONS = ("cn-", "us-gov-", "us-iso", "eu-iso")  # their ARNs do not begin with `arn:aws:`


def _checked_region(region: str) -> str:
    if region.startswith(OTHER_PARTITIONS):
        raise ValueError(f"{region} is in a partition of AWS that is not supported: its ARNs and addresses differ")
    return region


Region = Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$"), AfterValidator(_checked_region)]
Zone = Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d[a-z]$")]
InstanceType = Annotated[str, Field(pattern=r"^[a-z]+\d+[a-z]*(-[a-z]+)?\.[a-z0-9]+$")]
Domain = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$", max_length=253)]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+[^/\s]$")]


def _once_each(entries: tuple[T, ...]) -> tuple[T, ...]:
    if twice := [str(entry) for entry in dict.fromkeys(entries) if entries.count(entry) > 1]:
        raise ValueError(f"names {', '.join(twice)} twice: remove one of them")
    return entries


class AwsPorts(Ports):
    """The ports of a machine's daemons; the collector of a local stack has none.

    A machine has one daemon of a kind, so none is a setting.
    """

    postgres: Port = 5432
    pgbouncer: Port = 6432
    valkey: Port = 6379
    patroni: Port = 8008
    etcd_client: Port = 2379
    etcd_peer: Port = 2380
    etcd_metrics: Port = 2381
    blue: Port = 8100
    green: Port = 8200
    trial: Port = 8300
    node_exporter: Port = 9100
    redis_exporter: Port = 9121
    pgbouncer_exporter: Port = 9127
    postgres_exporter: Port = 9187
    pgbackrest_exporter: Port = 9854
    collector: Port = 9188


class Account(Settings):
    """Account and region of the stack; the provider refuses credentials of another account."""

    id: Annotated[str, Field(pattern=r"^\d{12}$")]
    region: Region


class Network(Settings):
    """The stack's own VPC. Each zone has a public and a private subnet; machines are in the private ones."""

    cidr: IPv4Network
    availability_zones: Annotated[  # a load balancer requires two
        tuple[Zone, ...], Field(min_length=2, max_length=3), AfterValidator(_once_each)
    ]
    nat_gateways: Literal["one", "each-zone"] = "one"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.cidr.is_private or not 16 <= self.cidr.prefixlen <= 20:  # noqa: PLR2004 - VPC: /16 at most
            raise ValueError(f"{self.cidr} is not a private network from /16 to /20, such as 10.20.0.0/16")
        return self


class OperationsVpc(Settings):
    """The VPC of the Kubernetes cluster, peered: its Prometheus scrapes the stack, its runners deploy it."""

    vpc_id: Annotated[str, Field(pattern=r"^vpc-([0-9a-f]{8}|[0-9a-f]{17})$")]
    cidr: IPv4Network
    route_table_ids: Annotated[
        tuple[Annotated[str, Field(pattern=r"^rtb-([0-9a-f]{8}|[0-9a-f]{17})$")], ...],
        Field(min_length=1),
        AfterValidator(_once_each),
    ]


class Volume(Settings):
    """A gp3 volume; sizes in GiB, throughput in MiB a second."""

    size_gib: Annotated[int, Field(ge=10, le=16_384)]
    iops: Annotated[int, Field(ge=3000, le=16_000)] = 3000
    throughput_mib: Annotated[int, Field(ge=125, le=1000)] = 125

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        if self.iops > max(3000, 500 * self.size_gib):
            raise ValueError(f"iops {self.iops} are more than gp3's 500 for each of {self.size_gib} GiB")
        if self.throughput_mib * 4 > self.iops:
            raise ValueError(f"throughput_mib {self.throughput_mib} is more than gp3's quarter of {self.iops} iops")
        return self


class AwsDatabase(Database):
    """The database's machine and its two volumes."""

    instance_type: InstanceType
    data_volume: Volume
    wal_volume: Volume


class AwsCache(Settings):
    """ElastiCache for Valkey; with two nodes or more, the second takes over in another zone."""

    node_type: Annotated[str, Field(pattern=r"^cache\.[a-z0-9]+\.[a-z0-9]+$")]
    nodes: Annotated[int, Field(ge=1, le=6)] = 1


class ObjectLock(Settings):
    """Days during which a backup cannot be deleted; in mode COMPLIANCE not even by the account's root user."""

    mode: Literal["GOVERNANCE", "COMPLIANCE"]
    days: Annotated[int, Field(ge=1, le=3650)]


class AwsBackups(Backups):
    """The buckets of backups. `off_site_region` has the second repository; without it there is one."""

    object_lock: ObjectLock
    off_site_region: Region | None = None

    @model_validator(mode="after")
    def _lock_ends_with_retention(self) -> Self:
        if self.object_lock.days > self.retention_days:
            raise ValueError(f"object_lock.days {self.object_lock.days} outlasts retention_days {self.retention_days}")
        return self

    @model_validator(mode="after")
    def _no_drill_is_required(self) -> Self:
        if self.require_drill_days:
            raise ValueError(
                "require_drill_days is for the platform local: remove it, restore drills do not run on aws"
            )
        return self


class AwsFleets(Fleets):
    """Machines of each fleet: at least `size`, up to `max_size` under load."""

    instance_type: InstanceType
    max_size: Annotated[int, Field(ge=1, le=100)]

    @model_validator(mode="after")
    def _sizes_are_ordered(self) -> Self:
        if self.max_size < self.size:
            raise ValueError(f"max_size {self.max_size} is less than size {self.size}")
        return self

    @property
    def largest_size(self) -> int:
        """The largest number of machines that a fleet can have."""
        return self.max_size


class Traffic(Settings):
    """The service's public or internal name, and the networks that may connect."""

    domain: Domain
    hosted_zone_id: Annotated[str, Field(pattern=r"^Z[A-Z0-9]{4,31}$")]
    certificate_arn: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:acm:[a-z0-9-]+:\d{12}:certificate/[0-9a-f-]{36}$")]
    internal: bool
    allowed_cidrs: Annotated[tuple[IPv4Network, ...], Field(min_length=1), AfterValidator(_once_each)]

    @model_validator(mode="after")
    def _internal_means_private(self) -> Self:
        if self.internal and (public := [str(cidr) for cidr in self.allowed_cidrs if not cidr.is_private]):
            raise ValueError(f"internal is true, but allowed_cidrs has public networks: {', '.join(public)}")
        return self


class SecretKey(Settings):
    """A key of a Kubernetes Secret in the stack's namespace."""

    name: KubernetesName
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]{1,253}$")]


class Email(Settings):
    """Mail for warnings: recipient, sender and server."""

    to: Address
    sender: Address
    smarthost: Smarthost
    username: str
    password: SecretKey


class Slack(Settings):
    """The channel, and the secret with the incoming webhook's URL."""

    channel: Annotated[str, Field(pattern=r"^#[a-z0-9_-]{1,79}$")]
    webhook: SecretKey


class Receivers(Settings):
    """Receivers of alerts; Alertmanager reads secret addresses from Kubernetes Secrets.

    `rollback_webhook` starts the pipeline that rolls back a promoted version or proposes it; None starts none.
    """

    pagerduty_routing_key: SecretKey
    slack: Slack
    email: Email
    ticket_webhook: SecretKey
    watchdog_webhook: SecretKey
    rollback_webhook: SecretKey | None = None


class NetworkPolicies(Settings):
    """The pods of the cluster's Prometheus and Alertmanager: their namespace and labels.

    For a cluster whose own policies deny by default. The first policy that selects a pod isolates it: elsewhere these
    would cut Prometheus off from everything else that it scrapes.
    """

    namespace: KubernetesName
    prometheus: Annotated[Mapping[str, str], Field(min_length=1)]
    alertmanager: Annotated[Mapping[str, str], Field(min_length=1)]


class Kubernetes(Settings):
    """The cluster whose Prometheus Operator gets the stack's rules, scrape targets and routes.

    `labels` are those that its Prometheus and Alertmanager select resources by; `prometheus_role` is the IAM role of
    its Prometheus, which gets the permission to find the fleets' machines. The URLs are those of Prometheus,
    Alertmanager, the runbooks and Grafana's dashboards (`https://HOST/d`), as their users reach them. Without
    `dashboards_url` alerts have no link to a dashboard; without `network_policies` none is declared.
    """

    context: str
    namespace: KubernetesName
    labels: Mapping[str, str]
    prometheus_role: Annotated[str, Field(pattern=r"^[\w+=,.@-]{1,64}$")]
    prometheus_url: Url
    alertmanager_url: Url
    runbooks_url: Url
    dashboards_url: Url | None = None
    network_policies: NetworkPolicies | None = None


class MachineImages(Settings):
    """The Debian 13 image for each architecture in use."""

    arm64: Annotated[str, Field(pattern=r"^ami-[0-9a-f]{17}$")] | None = None
    amd64: Annotated[str, Field(pattern=r"^ami-[0-9a-f]{17}$")] | None = None


class AwsFirstRollout(FirstRollout):
    """First values of the rollout document; the digest is required, so that a plan needs no release store."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AwsSettings(SharedSettings):
    """All settings of one stack on AWS."""

    ports: ClassVar[AwsPorts] = AwsPorts.model_construct()

    platform: Literal["aws"]
    account: Account
    network: Network
    operations_vpc: OperationsVpc
    machine_images: MachineImages
    release_bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    database: AwsDatabase
    cache: AwsCache
    backups: AwsBackups
    fleets: AwsFleets
    traffic: Traffic
    kubernetes: Kubernetes
    receivers: Receivers
    first_rollout: AwsFirstRollout

    @model_validator(mode="after")
    def _groups_are_consistent(self) -> Self:
        account, region = self.account.id, self.account.region
        foreign = [zone for zone in self.network.availability_zones if zone[:-1] != region]
        if foreign:
            raise ValueError(f"network.availability_zones: {', '.join(foreign)} is not in region {region}")
        if self.network.cidr.overlaps(self.operations_vpc.cidr):
            raise ValueError(
                f"network.cidr {self.network.cidr} and operations_vpc.cidr {self.operations_vpc.cidr} overlap: "
                "peered networks must be disjoint"
            )
        if self.backups.off_site_region == region:
            raise ValueError(f"backups.off_site_region is {region}, the stack's own region")
        if f":acm:{region}:{account}:" not in self.traffic.certificate_arn:
            raise ValueError(
                f"traffic.certificate_arn is not in region {region} and account {account}, which the load balancer "
                "requires"
            )
        return self

    @model_validator(mode="after")
    def _maintenance_is_in_utc(self) -> Self:
        if zones := sorted({window.timezone for window in self.maintenance} - {"UTC"}):
            raise ValueError(
                f"maintenance has windows in {', '.join(zones)}: AlertmanagerConfig has no time zones, use UTC"
            )
        return self

    @model_validator(mode="after")
    def _images_are_set(self) -> Self:
        for group in ("database", "fleets"):
            self.machine_image(getattr(self, group).instance_type)
        return self

    @staticmethod
    def rollout_key(stack: str) -> str:
        """Return the key of a stack's rollout document in the release bucket."""
        return f"rollout/{stack}.json"

    def machine_image(self, instance_type: str) -> str:
        """Return the image that an instance type runs.

        Raises:
            ValueError: its architecture has no image.
        """
        architecture = architecture_of(instance_type)
        image: str | None = getattr(self.machine_images, architecture)
        if image is None:
            raise ValueError(f"machine_images.{architecture} is required: {instance_type} is {architecture}")
        return image


def architecture_of(instance_type: str) -> Architecture:
    """Return the architecture of an EC2 instance type: Graviton has a `g` after the generation, as in `m7gd.large`."""
    return "arm64" if re.match(r"[a-z]+\d+g|a1\.", instance_type) else "amd64"
