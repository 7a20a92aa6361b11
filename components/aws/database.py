"""TimescaleDB of an AWS stack: a machine that runs the same units as `local`, and its volumes.

Owns the server and its volumes. A change of the user data replaces the machine; volumes, address and passwords stay.
Does not own roles (`components.access`) and the objects of the database (`components.schema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pulumi
from pulumi_aws import ebs, ec2

from components.access import (
    Access,
    AccessArgs,
    Connection,
    DatabaseAccess,
    draw_passwords,
    is_pooled,
    login_file,
    pooled_passwords,
)
from components.aws.backups import Backups
from components.aws.cache import Cache
from components.aws.foundation import Foundation
from components.aws.machines import ROOT_GIB, metadata_options
from components.aws.naming import tags
from components.aws.network import database_address
from components.aws.operators import AuthorityFile, Reachable
from components.aws.policies import MachineRole, MachineRoleArgs
from components.aws.secrets import Secret, SecretArgs
from components.certificates import Authority, Certificate
from components.secrets import LoginPassword, Password
from observatory.documents.logins import PROVISIONER, AccessDocument
from observatory.nodes import collector, etcd, pgbouncer, postgres
from observatory.nodes.aws import DATABASE, database_user_data
from observatory.nodes.cloud_init import compressed
from observatory.nodes.exporters import cache_password_file, cache_passwords
from observatory.nodes.pgbackrest import cipher_file, cipher_section
from observatory.nodes.pgbouncer import user_lines, users_file
from observatory.nodes.postgres import api_credentials, api_credentials_file, logins, logins_file, node_parameters
from observatory.nodes.tls import authority_file, certificate_file, key_file
from observatory.settings.aws import Volume

OWNER = "migrator"
DATA_DEVICE, WAL_DEVICE = "/dev/sdf", "/dev/sdg"


@dataclass(frozen=True, kw_only=True)
class DatabaseArgs:
    """The resources that the database depends on and uses.

    `home` is the directory of this machine that gets the authority's certificate, with which clients here verify the
    server.
    """

    base: Foundation
    home: Path
    authority: Authority
    backups: Backups
    cache: Cache
    logins: AccessDocument


class Database(pulumi.ComponentResource):
    """TimescaleDB on PostgreSQL 17, and pgBouncer. The schema depends on `ready`, clients on `pooled`.

    Outputs: `admin_url` (superuser) and `owner_url` (migrations), both secret and for the operations VPC; `urls` (by
    login) and `url` (the service's), both secret; `login` (secret; the service's user and password, on a line each);
    `ca_file`, by which clients verify the servers; `admin_secret`, the ARN of the secret with `admin_url`.
    """

    def __init__(self, name: str, args: DatabaseArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Database", name, None, opts)
        self._name, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        settings, address = args.base.settings, database_address(args.base.settings)

        self.passwords = draw_passwords(args.logins, self._child)
        superuser_password = Password("superuser-password", opts=self._child).value
        secret = self._secret(superuser_password, address)
        data = self._volume("data", settings.database.data_volume)
        wal = self._volume("wal", settings.database.wal_volume)
        machine = self._machine(address, secret, data, wal)
        attached = [self._attach(machine, data, DATA_DEVICE), self._attach(machine, wal, WAL_DEVICE)]

        trusted = AuthorityFile(f"{name}-ca", args.home / "ca.crt", args.authority.certificate, opts=self._child)
        self.ca_file = trusted.path
        verified = self.ca_file.apply(lambda path: f"sslmode=verify-full&sslrootcert={quote(path, safe='')}")
        self.admin_url: pulumi.Output[str] = pulumi.Output.all(superuser_password, verified).apply(
            lambda outputs: (
                f"postgresql://postgres:{outputs[0]}@{address}:{settings.ports.postgres}/postgres?{outputs[1]}"
            )
        )
        self.owner_url: pulumi.Output[str] = self.admin_url.apply(
            lambda url: url.replace("/postgres?", f"/{settings.database.name}?options={quote(f'-crole={OWNER}')}&", 1)
        )
        active = args.logins.active_login("app")
        self.login = login_file(active, self.passwords[active])
        self.urls = {name: self._url(name, address, verified) for name in self.passwords}
        self.url = self.urls[active]
        self.admin_secret = self._kept(f"{name}-administrator", {"url": self.admin_url}).arn
        reachable = Reachable(
            f"{name}-reachable",
            machine=machine.id,
            conninfo=self.admin_url,
            opts=pulumi.ResourceOptions(parent=self, depends_on=attached),
        )
        access = self._access(address, machine.id, reachable)
        self.ready: tuple[pulumi.Resource, ...] = (access,)
        self.pooled: tuple[pulumi.Resource, ...] = (access,)
        self.register_outputs({"url": self.url, "ca_file": self.ca_file, "admin_secret": self.admin_secret})

    def _url(self, name: str, address: str, verified: pulumi.Output[str]) -> pulumi.Output[str]:
        """Return a login's URL, through pgBouncer or to PostgreSQL itself."""
        settings = self._args.base.settings
        port = settings.ports.pgbouncer if is_pooled(name) else settings.ports.postgres
        return pulumi.Output.all(self.passwords[name].value, verified).apply(
            lambda outputs: f"postgresql://{name}:{outputs[0]}@{address}:{port}/{settings.database.name}?{outputs[1]}"
        )

    def _access(self, address: str, machine: pulumi.Output[str], reachable: Reachable) -> Access:
        """Declare the database, its roles and logins, once the server is reachable."""
        settings = self._args.base.settings
        provisioner = LoginPassword(PROVISIONER, generation=1, opts=self._child)
        prepared = DatabaseAccess(
            f"{self._name}-access",
            admin_url=self.admin_url,
            database=settings.database.name,
            owner=OWNER,
            verifier=provisioner.verifier,
            libraries=node_parameters(settings, DATABASE)["shared_preload_libraries"],
            server=machine,
            pooler_port=settings.ports.pgbouncer,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[reachable]),
        )
        connection = Connection(
            host=address,
            port=settings.ports.postgres,
            user=PROVISIONER,
            password=pulumi.Output.all(provisioner.value, prepared.id).apply(lambda outputs: str(outputs[0])),
            ca_file=self.ca_file,
        )
        args = AccessArgs(
            connection=connection,
            database=settings.database.name,
            owner=OWNER,
            logins=self._args.logins,
            passwords=self.passwords,
            pool_size=settings.database.pool_size,
        )
        return Access("roles", args, self._child)

    def _secret(self, superuser_password: pulumi.Output[str], address: str) -> Secret:
        """Declare the secret with the machine's secret files and the collector's program, by their paths."""
        args, paths = self._args, DATABASE
        api_password = Password("patroni-api", opts=self._child).value
        cache = pulumi.Output.all(args.cache.password, args.cache.url)
        files: dict[str, pulumi.Input[str]] = {
            authority_file(paths): args.authority.certificate,
            logins_file(paths): superuser_password.apply(logins),
            api_credentials_file(paths): api_password.apply(api_credentials),
            **self._passphrases(),
            users_file(paths): pulumi.Output.all(**pooled_passwords(self.passwords)).apply(user_lines),
            cache_password_file(paths): cache.apply(
                lambda outputs: cache_passwords(args.base.settings, outputs[0], address=outputs[1])
            ),
            collector.program_file(paths): collector.program(),
            **self._certificate(etcd.SERVER, address, client=True),
            **self._certificate(postgres.SERVER, address),
            **self._certificate(postgres.STORE_CLIENT, address, client=True),
            **self._certificate(pgbouncer.SERVER, address),
        }
        return self._kept(f"{self._name}-machine", files)

    def _passphrases(self) -> dict[str, pulumi.Output[str]]:
        """Declare the passphrase of each backup repository, and return pgBackRest's files with them."""
        kept = pulumi.ResourceOptions(parent=self, protect=True)  # without it no backup in the bucket can be read
        files = {}
        for number, _ in enumerate(self._args.backups.places, 1):
            value = Password(f"backup-passphrase{'' if number == 1 else f'-{number}'}", opts=kept).value
            files[cipher_file(DATABASE, number)] = value.apply(partial(cipher_section, number=number))
        return files

    def _kept(self, name: str, values: Mapping[str, pulumi.Input[str]]) -> Secret:
        base = self._args.base
        secret = SecretArgs(stack=base.stack, key_arn=base.encryption.key_arn, values=values)
        return Secret(name, secret, self._child)

    def _certificate(self, server: str, address: str, *, client: bool = False) -> dict[str, pulumi.Output[str]]:
        """Return the files of a new server certificate, which with `client` is also a client certificate."""
        hosts = ("127.0.0.1", "localhost", address)
        made = Certificate(server, authority=self._args.authority, hosts=hosts, client=client, opts=self._child)
        return {certificate_file(DATABASE, server): made.certificate, key_file(DATABASE, server): made.key}

    def _volume(self, kind: str, volume: Volume) -> ebs.Volume:
        """Declare a volume, which stays when the machine is replaced."""
        name = f"{self._name}-{kind}"
        return ebs.Volume(
            name,
            availability_zone=self._args.base.settings.network.availability_zones[0],
            type="gp3",
            size=volume.size_gib,
            iops=volume.iops,
            throughput=volume.throughput_mib,
            encrypted=True,
            kms_key_id=self._args.base.encryption.key_arn,
            final_snapshot=True,
            tags=tags(self._args.base.stack, name),
            opts=pulumi.ResourceOptions(parent=self, protect=True),
        )

    def _machine(self, address: str, secret: Secret, data: ebs.Volume, wal: ebs.Volume) -> ec2.Instance:
        args, settings = self._args, self._args.base.settings
        role = MachineRole(
            self._name,
            MachineRoleArgs(stack=args.base.stack, statements=(*secret.readable(), *args.backups.rights)),
            self._child,
        )
        named = tags(args.base.stack, self._name, Role="database")
        return ec2.Instance(
            self._name,
            ami=settings.machine_image(settings.database.instance_type),
            instance_type=settings.database.instance_type,
            subnet_id=args.base.network.private_subnet_ids[0],
            private_ip=address,
            associate_public_ip_address=False,
            vpc_security_group_ids=[args.base.firewall.groups["database"]],
            iam_instance_profile=role.profile,
            metadata_options=metadata_options(),
            ebs_optimized=True,
            root_block_device=ec2.InstanceRootBlockDeviceArgs(
                encrypted=True,
                kms_key_id=args.base.encryption.key_arn,
                volume_type="gp3",
                volume_size=ROOT_GIB,
                tags=named,
            ),
            user_data_base64=self._user_data(address, secret, data, wal),
            user_data_replace_on_change=True,
            tags=named,
            # Address and volumes can belong to one machine only. It installs its packages at its start, never again.
            opts=pulumi.ResourceOptions(
                parent=self,
                delete_before_replace=True,
                depends_on=[*args.base.network.ways_out, *args.base.firewall.rules],
            ),
        )

    def _user_data(self, address: str, secret: Secret, data: ebs.Volume, wal: ebs.Volume) -> pulumi.Output[str]:
        args, settings = self._args, self._args.base.settings
        outputs = pulumi.Output.all(secret.arn, data.id, wal.id, args.backups.repositories, args.cache.url)
        return outputs.apply(
            lambda values: compressed(
                database_user_data(
                    settings,
                    address=address,
                    secret=values[0],
                    data_volume=values[1],
                    wal_volume=values[2],
                    buckets=values[3],
                    cache_url=values[4],
                )
            )
        )

    def _attach(self, machine: ec2.Instance, volume: ebs.Volume, device: str) -> ec2.VolumeAttachment:
        return ec2.VolumeAttachment(
            f"{self._name}{device.replace('/', '-')}",
            instance_id=machine.id,
            volume_id=volume.id,
            device_name=device,
            stop_instance_before_detaching=True,
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
