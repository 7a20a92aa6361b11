"""The stack's own KMS key, which encrypts the database's volumes, secrets, backups and cache."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_aws import kms

from components.aws.naming import physical_name, tags
from observatory.settings import PROJECT, AwsSettings

DELETION_WINDOW_DAYS = 30  # KMS's maximum: a deletion can be cancelled during these days
MAX_ALIAS = 256  # characters, including `alias/`


@dataclass(frozen=True, kw_only=True)
class EncryptionArgs:
    """The stack's name and settings."""

    stack: str
    settings: AwsSettings


class Encryption(pulumi.ComponentResource):
    """The key. Outputs: `key_arn`, and `off_site_key_arn` where backups are kept in a second region."""

    def __init__(self, name: str, args: EncryptionArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Encryption", name, None, opts)
        region = args.settings.backups.off_site_region
        stateful = pulumi.ResourceOptions(parent=self, protect=True)  # without the key no data can be read
        # Only a new key can be made for several regions, so that `off_site_region` may be set later.
        made_once = pulumi.ResourceOptions(ignore_changes=["multiRegion"])
        key = kms.Key(
            name,
            description=f"Data of the LLM Observatory's stack {args.stack}",
            enable_key_rotation=True,
            deletion_window_in_days=DELETION_WINDOW_DAYS,
            multi_region=True,
            tags=tags(args.stack, name),
            opts=pulumi.ResourceOptions.merge(stateful, made_once),
        )
        kms.Alias(
            name,
            name="alias/" + physical_name(PROJECT, args.stack, limit=MAX_ALIAS - len("alias/")),
            target_key_id=key.key_id,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.key_arn = key.arn
        self.off_site_key_arn: pulumi.Output[str] | None = None
        if region is not None:
            replica = kms.ReplicaKey(
                f"{name}-off-site",
                primary_key_arn=key.arn,
                region=region,
                deletion_window_in_days=DELETION_WINDOW_DAYS,
                tags=tags(args.stack, f"{name}-off-site"),
                opts=stateful,
            )
            self.off_site_key_arn = replica.arn
        self.register_outputs({"key_arn": self.key_arn})
