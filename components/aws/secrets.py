"""Secrets Manager: secrets that machines read at their start, and secrets whose ARN operators find in the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_aws import secretsmanager

from components.aws.naming import tags
from components.aws.policies import Allow

RECOVERY_WINDOW_DAYS = 7


@dataclass(frozen=True, kw_only=True)
class SecretArgs:
    """The stack's name, its key, and a JSON object's values: contents by path for a machine's files."""

    stack: str
    key_arn: pulumi.Input[str]
    values: Mapping[str, pulumi.Input[str]]


class Secret(pulumi.ComponentResource):
    """One secret. Output: `arn`; reading the secret needs a permission."""

    def __init__(self, name: str, args: SecretArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Secret", name, None, opts)
        self._key_arn = args.key_arn
        child = pulumi.ResourceOptions(parent=self)
        secret = secretsmanager.Secret(
            name,
            kms_key_id=args.key_arn,
            recovery_window_in_days=RECOVERY_WINDOW_DAYS,
            tags=tags(args.stack, name),
            opts=child,
        )
        content = pulumi.Output.json_dumps(dict(args.values))  # secret, as its values are
        version = secretsmanager.SecretVersion(name, secret_id=secret.id, secret_string=content, opts=child)
        self.arn = version.secret_arn  # known only once the secret has a value
        self.secret_arn = secret.arn
        self.register_outputs({"arn": self.arn})

    def readable(self) -> tuple[Allow, ...]:
        """Return the statements that allow a machine to read this secret and no other."""
        return (
            Allow(actions=("secretsmanager:GetSecretValue",), resources=(self.secret_arn,)),
            Allow(actions=("kms:Decrypt",), resources=(self._key_arn,)),
        )
