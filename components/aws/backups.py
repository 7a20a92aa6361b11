"""The backup buckets: pgBackRest's base backups and WAL, and their copy in another region.

Owns the buckets and their replication. The database's machine makes the backups, at the times of its timers.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_aws import iam, s3

from components.aws.buckets import Bucket, BucketArgs
from components.aws.encryption import Encryption
from components.aws.naming import tags
from components.aws.policies import Allow, policy, trust
from observatory.nodes.pgbackrest import S3_PREFIX
from observatory.settings import AwsSettings


@dataclass(frozen=True, kw_only=True)
class BackupsArgs:
    """The stack's name and settings, and its keys."""

    stack: str
    settings: AwsSettings
    encryption: Encryption


class Backups(pulumi.ComponentResource):
    """The repository. Outputs: `stores`, the addresses of all copies; `bucket`, which the database writes to."""

    def __init__(self, name: str, args: BackupsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Backups", name, None, opts)
        self._args = args
        self.bucket = self._bucket(name, key_arn=args.encryption.key_arn)
        self._copies = [self.bucket]
        region, key_arn = args.settings.backups.off_site_region, args.encryption.off_site_key_arn
        if region is not None and key_arn is not None:
            # pgBackRest expires in the first bucket only; twice the retention covers what later backups build on
            expire_days = 2 * args.settings.backups.retention_days
            copy = self._bucket(f"{name}-off-site", key_arn=key_arn, region=region, expire_days=expire_days)
            self._replicate(name, copy, key_arn)
            self._copies.append(copy)
        self.stores = [pulumi.Output.concat("s3://", bucket.name, S3_PREFIX) for bucket in self._copies]
        self.register_outputs({"stores": self.stores})

    def _bucket(
        self, name: str, *, key_arn: pulumi.Input[str], region: str | None = None, expire_days: int | None = None
    ) -> Bucket:
        lock = self._args.settings.backups.object_lock
        args = BucketArgs(
            stack=self._args.stack,
            region=region,
            key_arn=key_arn,
            object_lock=lock,
            expire_days=expire_days,
            keep_deleted_days=lock.days,
        )
        return Bucket(name, args, pulumi.ResourceOptions(parent=self))

    def _replicate(self, name: str, copy: Bucket, key_arn: pulumi.Input[str]) -> None:
        """Copy every object within minutes. Deletions are not copied, so an object deleted here stays in the copy."""
        child = pulumi.ResourceOptions(parent=self)
        role = iam.Role(
            f"{name}-replication",
            assume_role_policy=trust("s3.amazonaws.com"),
            tags=tags(self._args.stack, f"{name}-replication"),
            opts=child,
        )
        rights = iam.RolePolicy(
            f"{name}-replication", role=role.name, policy=policy(*self._replication_rights(copy, key_arn)), opts=child
        )
        s3.BucketReplicationConfig(
            name,
            bucket=self.bucket.name,
            role=role.arn,
            rules=[_rule(copy, key_arn)],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[rights, *self.bucket.ready, *copy.ready]),
        )

    def _replication_rights(self, copy: Bucket, key_arn: pulumi.Input[str]) -> tuple[Allow, ...]:
        source, target = self.bucket, copy
        return (
            Allow(actions=("s3:GetReplicationConfiguration", "s3:ListBucket"), resources=(source.arn,)),
            Allow(
                actions=("s3:GetObjectVersion*", "s3:GetObjectRetention", "s3:GetObjectLegalHold"),
                resources=(pulumi.Output.concat(source.arn, "/*"),),
            ),
            Allow(
                actions=("s3:ReplicateObject", "s3:ReplicateTags"), resources=(pulumi.Output.concat(target.arn, "/*"),)
            ),
            Allow(actions=("kms:Decrypt",), resources=(self._args.encryption.key_arn,)),
            Allow(actions=("kms:Encrypt", "kms:GenerateDataKey"), resources=(key_arn,)),
        )


def _rule(copy: Bucket, key_arn: pulumi.Input[str]) -> s3.BucketReplicationConfigRuleArgs:
    return s3.BucketReplicationConfigRuleArgs(
        id="off-site",
        status="Enabled",
        priority=1,
        filter=s3.BucketReplicationConfigRuleFilterArgs(prefix=""),
        delete_marker_replication=s3.BucketReplicationConfigRuleDeleteMarkerReplicationArgs(status="Disabled"),
        source_selection_criteria=s3.BucketReplicationConfigRuleSourceSelectionCriteriaArgs(
            sse_kms_encrypted_objects=s3.BucketReplicationConfigRuleSourceSelectionCriteriaSseKmsEncryptedObjectsArgs(
                status="Enabled"
            )
        ),
        destination=s3.BucketReplicationConfigRuleDestinationArgs(
            bucket=copy.arn,
            storage_class="STANDARD_IA",
            encryption_configuration=s3.BucketReplicationConfigRuleDestinationEncryptionConfigurationArgs(
                replica_kms_key_id=key_arn
            ),
        ),
    )
