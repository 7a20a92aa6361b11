"""The stack's own network: a VPC over the zones, NAT gateways for private machines, peering with the operations VPC.

Machines are in private subnets. Public subnets have the NAT gateways and, if the service is public, its balancer.
`components.aws.firewall` has the allowed connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
from pulumi_aws import ec2

from components.aws.naming import tags
from observatory.settings import AwsSettings

SUBNET_BITS = 4  # sixteen blocks: public ones from the first, private ones from the ninth
FIRST_PRIVATE = 8
FIRST_HOST = 10  # of a subnet: AWS keeps the first four addresses
ANYWHERE = "0.0.0.0/0"


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """The stack's name and settings."""

    stack: str
    settings: AwsSettings


def public_cidrs(settings: AwsSettings) -> tuple[IPv4Network, ...]:
    """Return the public subnets' networks, one for each zone."""
    return _blocks(settings, 0)


def private_cidrs(settings: AwsSettings) -> tuple[IPv4Network, ...]:
    """Return the private subnets' networks, one for each zone."""
    return _blocks(settings, FIRST_PRIVATE)


def database_address(settings: AwsSettings) -> str:
    """Return the address of the database's machine; a replacement keeps it."""
    return str(private_cidrs(settings)[0][FIRST_HOST])


def _blocks(settings: AwsSettings, first: int) -> tuple[IPv4Network, ...]:
    blocks = tuple(settings.network.cidr.subnets(prefixlen_diff=SUBNET_BITS))
    return blocks[first : first + len(settings.network.availability_zones)]


class Network(pulumi.ComponentResource):
    """The network. Outputs: `vpc_id`, and the subnets' ids in the order of the zones.

    `ways_out` has what a private machine needs at its start to install its packages.
    """

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Network", name, None, opts)
        self._name, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        self._vpc = ec2.Vpc(
            name,
            cidr_block=str(args.settings.network.cidr),
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags=self._tags(),
            opts=self._child,
        )
        self.vpc_id = self._vpc.id
        # The default security group is not used and allows nothing.
        ec2.DefaultSecurityGroup(f"{name}-default", vpc_id=self.vpc_id, tags=self._tags("default"), opts=self._child)

        self._public = self._subnets("public", public_cidrs(args.settings))
        self._private = self._subnets("private", private_cidrs(args.settings))
        self.public_subnet_ids = [subnet.id for subnet in self._public]
        # What is placed in the first subnet waits for the reservation, or it might get the database's address.
        self.private_subnet_ids = [self._reservation().subnet_id, *(subnet.id for subnet in self._private[1:])]

        self.ways_out: list[pulumi.Resource] = []
        self._open_public()
        tables = self._open_private()
        self._peer(tables)
        self._reach_s3(tables)
        self.register_outputs({"vpc_id": self.vpc_id})

    def _tags(self, part: str = "") -> dict[str, str]:
        return tags(self._args.stack, f"{self._name}-{part}".rstrip("-"))

    def _subnets(self, kind: str, cidrs: tuple[IPv4Network, ...]) -> list[ec2.Subnet]:
        """Return a subnet in each zone, without public addresses for its machines."""
        return [
            ec2.Subnet(
                f"{kind}-{zone}",
                vpc_id=self.vpc_id,
                availability_zone=zone,
                cidr_block=str(cidr),
                map_public_ip_on_launch=False,
                tags=self._tags(f"{kind}-{zone}"),
                opts=self._child,
            )
            for zone, cidr in zip(self._args.settings.network.availability_zones, cidrs, strict=True)
        ]

    def _reservation(self) -> ec2.SubnetCidrReservation:
        """Reserve the database's address: a balancer or a fleet's machine may get every other one."""
        return ec2.SubnetCidrReservation(
            "database-address",
            subnet_id=self._private[0].id,
            cidr_block=f"{database_address(self._args.settings)}/32",
            reservation_type="explicit",
            description="The database's machine",
            opts=self._child,
        )

    def _table(self, name: str) -> ec2.RouteTable:
        return ec2.RouteTable(name, vpc_id=self.vpc_id, tags=self._tags(name), opts=self._child)

    def _attach(self, name: str, subnet: ec2.Subnet, table: ec2.RouteTable) -> ec2.RouteTableAssociation:
        return ec2.RouteTableAssociation(name, subnet_id=subnet.id, route_table_id=table.id, opts=self._child)

    def _open_public(self) -> None:
        gateway = ec2.InternetGateway("internet", vpc_id=self.vpc_id, tags=self._tags("internet"), opts=self._child)
        table = self._table("public")
        ec2.Route(
            "public-internet",
            route_table_id=table.id,
            destination_cidr_block=ANYWHERE,
            gateway_id=gateway.id,
            opts=self._child,
        )
        for subnet, zone in zip(self._public, self._args.settings.network.availability_zones, strict=True):
            self._attach(f"public-{zone}", subnet, table)

    def _open_private(self) -> list[ec2.RouteTable]:
        """Declare the NAT gateways of private machines; return the private route tables, one for each zone."""
        zones = self._args.settings.network.availability_zones
        count = len(zones) if self._args.settings.network.nat_gateways == "each-zone" else 1
        gateways = [self._nat(zone, subnet) for zone, subnet in list(zip(zones, self._public, strict=True))[:count]]
        tables = []
        for index, (zone, subnet) in enumerate(zip(zones, self._private, strict=True)):
            table = self._table(f"private-{zone}")
            attached = self._attach(f"private-{zone}", subnet, table)
            route = ec2.Route(
                f"private-{zone}-internet",
                route_table_id=table.id,
                destination_cidr_block=ANYWHERE,
                nat_gateway_id=gateways[index % count].id,
                opts=self._child,
            )
            self.ways_out += [attached, route]
            tables.append(table)
        return tables

    def _nat(self, zone: str, subnet: ec2.Subnet) -> ec2.NatGateway:
        address = ec2.Eip(f"nat-{zone}", domain="vpc", tags=self._tags(f"nat-{zone}"), opts=self._child)
        return ec2.NatGateway(
            f"nat-{zone}",
            subnet_id=subnet.id,
            allocation_id=address.id,
            tags=self._tags(f"nat-{zone}"),
            opts=self._child,
        )

    def _peer(self, tables: list[ec2.RouteTable]) -> None:
        """Peer the operations VPC with the private subnets, with routes in both directions."""
        operations = self._args.settings.operations_vpc
        peering = ec2.VpcPeeringConnection(
            "operations",
            vpc_id=self.vpc_id,
            peer_vpc_id=operations.vpc_id,
            auto_accept=True,
            tags=self._tags("operations"),
            opts=self._child,
        )
        zones = self._args.settings.network.availability_zones
        for zone, table in zip(zones, tables, strict=True):
            self._route(f"private-{zone}-operations", table.id, operations.cidr, peering)
        for table_id in operations.route_table_ids:
            self._route(f"operations-{table_id}", table_id, self._args.settings.network.cidr, peering)

    def _route(self, name: str, table: pulumi.Input[str], to: IPv4Network, peering: ec2.VpcPeeringConnection) -> None:
        ec2.Route(
            name,
            route_table_id=table,
            destination_cidr_block=str(to),
            vpc_peering_connection_id=peering.id,
            opts=self._child,
        )

    def _reach_s3(self, tables: list[ec2.RouteTable]) -> None:
        """Declare an S3 endpoint, so that WAL, backups and releases avoid the NAT gateways and their cost."""
        ec2.VpcEndpoint(
            "s3",
            vpc_id=self.vpc_id,
            service_name=f"com.amazonaws.{self._args.settings.account.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in tables],
            tags=self._tags("s3"),
            opts=self._child,
        )
