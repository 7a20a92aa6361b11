"""The blue and green fleet of the storage service: a launch template, an Auto Scaling group, its target groups.

A template does not contain the version: each machine installs at its start the version that the rollout document has
for its fleet. So scaling never starts an older version, and a rollout does not change the template.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_aws import autoscaling, ec2, lb

from components.aws.foundation import Foundation
from components.aws.machines import ROOT_DEVICE, ROOT_GIB, template_metadata_options
from components.aws.naming import tags
from components.aws.policies import Allow, MachineRole, MachineRoleArgs
from components.aws.secrets import Secret, SecretArgs
from observatory.documents.rollout import FleetState
from observatory.nodes.aws import FLEET, fleet_user_data
from observatory.nodes.cloud_init import compressed
from observatory.nodes.storage import cache_password_file, instance_name, password_file
from observatory.nodes.tls import authority_file
from observatory.settings import FleetName

HEALTH_INTERVAL_S, HEALTH_TIMEOUT_S = 5, 2  # the ALB's minimum
UNHEALTHY_AFTER, HEALTHY_AFTER = 2, 2
GRACE_S = 300  # a bare machine installs its packages first
CPU_TARGET_PERCENT = 50.0  # so that the fleet can also take the other fleet's traffic
CAPACITY_TIMEOUT = "20m"


@dataclass(frozen=True, kw_only=True)
class FleetArgs:
    """The resources that a fleet depends on and uses, and its state from the rollout document.

    `document` is the rollout document's `s3://` URL; `after` has the resources that instances depend on.
    """

    base: Foundation
    name: FleetName
    state: FleetState
    document: str
    database_address: str
    database_login: pulumi.Input[str]
    cache_url: pulumi.Input[str]
    cache_password: pulumi.Input[str]
    authority_certificate: pulumi.Input[str]
    after: tuple[pulumi.Resource, ...]


class Fleet(pulumi.ComponentResource):
    """One fleet. Outputs: `target_group`, weighted by the balancer, and `preview_group`, which gets preview traffic.

    `group` is the name of its Auto Scaling group; deployments replace its machines.
    """

    def __init__(self, name: str, args: FleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Fleet", name, None, opts)
        self._name, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        self.target_group = self._targets(name)
        self.preview_group = self._targets(f"{name}-preview")
        group = self._group(self._template())
        self.group = group.name
        self._scale(group)
        self.register_outputs(
            {"version": args.state.version, "size": args.base.settings.fleets.size, "weight": args.state.weight}
        )

    def _targets(self, name: str) -> pulumi.Output[str]:
        """Declare a target group; each balancer needs its own."""
        group = lb.TargetGroup(
            name,
            vpc_id=self._args.base.network.vpc_id,
            port=self._port,
            protocol="HTTP",
            target_type="instance",
            deregistration_delay=self._args.base.settings.fleets.drain_seconds,
            health_check=lb.TargetGroupHealthCheckArgs(
                path="/health/ready",
                matcher="200",
                interval=HEALTH_INTERVAL_S,
                timeout=HEALTH_TIMEOUT_S,
                healthy_threshold=HEALTHY_AFTER,
                unhealthy_threshold=UNHEALTHY_AFTER,
            ),
            tags=tags(self._args.base.stack, name, Fleet=self._args.name),
            opts=self._child,
        )
        return group.arn

    @property
    def _port(self) -> int:
        return int(getattr(self._args.base.settings.ports, self._args.name))

    def _secret(self) -> Secret:
        name, args = instance_name(self._args.name, 1), self._args
        files = {
            authority_file(FLEET): args.authority_certificate,
            password_file(FLEET, name): args.database_login,
            cache_password_file(FLEET, name): args.cache_password,
        }
        kept = SecretArgs(stack=args.base.stack, key_arn=args.base.encryption.key_arn, values=files)
        return Secret(f"{self._name}-machine", kept, self._child)

    def _rights(self) -> tuple[Allow, ...]:
        """Return the permissions of an instance: it reads the rollout document and releases."""
        bucket = f"arn:aws:s3:::{self._args.base.settings.release_bucket}"
        document = f"arn:aws:s3:::{self._args.document.removeprefix('s3://')}"
        return (Allow(actions=("s3:GetObject",), resources=(f"{bucket}/v*.tar.gz", document)),)

    def _template(self) -> ec2.LaunchTemplate:
        args, settings = self._args, self._args.base.settings
        secret = self._secret()
        statements = (*secret.readable(), *self._rights())
        role = MachineRole(self._name, MachineRoleArgs(stack=args.base.stack, statements=statements), self._child)
        named = tags(args.base.stack, self._name, Role="fleet", Fleet=args.name)
        root = ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
            encrypted="true", volume_type="gp3", volume_size=ROOT_GIB, delete_on_termination="true"
        )
        return ec2.LaunchTemplate(
            self._name,
            image_id=settings.machine_image(settings.fleets.instance_type),
            instance_type=settings.fleets.instance_type,
            iam_instance_profile=ec2.LaunchTemplateIamInstanceProfileArgs(name=role.profile),
            network_interfaces=[
                ec2.LaunchTemplateNetworkInterfaceArgs(
                    associate_public_ip_address="false", security_groups=[args.base.firewall.groups["fleets"]]
                )
            ],
            metadata_options=template_metadata_options(),
            block_device_mappings=[ec2.LaunchTemplateBlockDeviceMappingArgs(device_name=ROOT_DEVICE, ebs=root)],
            user_data=self._user_data(secret),
            tag_specifications=[
                ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags=named)
                for kind in ("instance", "volume")
            ],
            tags=named,
            opts=self._child,
        )

    def _user_data(self, secret: Secret) -> pulumi.Output[str]:
        args = self._args
        outputs = pulumi.Output.all(secret.arn, args.cache_url)
        return outputs.apply(
            lambda values: compressed(
                fleet_user_data(
                    args.base.settings,
                    fleet=args.name,
                    secret=values[0],
                    document=args.document,
                    database=args.database_address,
                    cache_url=values[1],
                )
            )
        )

    def _group(self, template: ec2.LaunchTemplate) -> autoscaling.Group:
        """Declare the group without a desired capacity, which scaling sets between the bounds."""
        fleets, named = self._args.base.settings.fleets, tags(self._args.base.stack, self._name, Fleet=self._args.name)
        return autoscaling.Group(
            self._name,
            min_size=fleets.size,
            max_size=fleets.max_size,
            vpc_zone_identifiers=self._args.base.network.private_subnet_ids,
            target_group_arns=[self.target_group, self.preview_group],
            health_check_type="ELB",
            health_check_grace_period=GRACE_S,
            launch_template=autoscaling.GroupLaunchTemplateArgs(
                id=template.id, version=template.latest_version.apply(str)
            ),
            # Another template (an image, a setting) replaces instances one by one, a new one first.
            instance_refresh=autoscaling.GroupInstanceRefreshArgs(
                strategy="Rolling",
                preferences=autoscaling.GroupInstanceRefreshPreferencesArgs(
                    min_healthy_percentage=100, max_healthy_percentage=200, auto_rollback=True
                ),
            ),
            wait_for_capacity_timeout=CAPACITY_TIMEOUT,
            tags=[
                autoscaling.GroupTagArgs(key=key, value=value, propagate_at_launch=False)
                for key, value in named.items()
            ],
            opts=pulumi.ResourceOptions(parent=self, depends_on=list(self._args.after)),
        )

    def _scale(self, group: autoscaling.Group) -> None:
        autoscaling.Policy(
            f"{self._name}-cpu",
            autoscaling_group_name=group.name,
            policy_type="TargetTrackingScaling",
            target_tracking_configuration=autoscaling.PolicyTargetTrackingConfigurationArgs(
                target_value=CPU_TARGET_PERCENT,
                predefined_metric_specification=(
                    autoscaling.PolicyTargetTrackingConfigurationPredefinedMetricSpecificationArgs(
                        predefined_metric_type="ASGAverageCPUUtilization"
                    )
                ),
            ),
            opts=self._child,
        )
