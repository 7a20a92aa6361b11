"""IAM: policy documents, and the role of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_aws import iam

from components.aws.naming import tags

VERSION = "2012-10-17"
SYSTEMS_MANAGER = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"


@dataclass(frozen=True, kw_only=True)
class Allow:
    """One statement that allows actions on resources, by their ARNs."""

    actions: tuple[str, ...]
    resources: tuple[pulumi.Input[str], ...]
    condition: Mapping[str, Mapping[str, pulumi.Input[str]]] | None = None

    def document(self) -> dict[str, object]:
        """Return the statement as IAM writes it."""
        condition = {"Condition": self.condition} if self.condition else {}
        return {"Effect": "Allow", "Action": list(self.actions), "Resource": list(self.resources), **condition}


def policy(*statements: Allow | Mapping[str, object]) -> pulumi.Output[str]:
    """Return a policy document as JSON."""
    written = [item.document() if isinstance(item, Allow) else dict(item) for item in statements]
    return pulumi.Output.json_dumps({"Version": VERSION, "Statement": written})


def trust(service: str) -> pulumi.Output[str]:
    """Return the document that lets a service, such as `ec2.amazonaws.com`, assume a role."""
    return policy({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"})


@dataclass(frozen=True, kw_only=True)
class MachineRoleArgs:
    """The permissions of a machine, in addition to access by Systems Manager, which replaces SSH."""

    stack: str
    statements: tuple[Allow, ...]


class MachineRole(pulumi.ComponentResource):
    """The role of a kind of machine. Output: `profile`, the name of its instance profile."""

    def __init__(self, name: str, args: MachineRoleArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:MachineRole", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        role = iam.Role(name, assume_role_policy=trust("ec2.amazonaws.com"), tags=tags(args.stack, name), opts=child)
        iam.RolePolicyAttachment(f"{name}-ssm", role=role.name, policy_arn=SYSTEMS_MANAGER, opts=child)
        own = iam.RolePolicy(name, role=role.name, policy=policy(*args.statements), opts=child)
        profile = iam.InstanceProfile(
            name,
            role=role.name,
            tags=tags(args.stack, name),
            # A machine that starts before it has its permissions could not fetch its secrets.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[own]),
        )
        self.profile = profile.name
        self.register_outputs({"profile": self.profile})
