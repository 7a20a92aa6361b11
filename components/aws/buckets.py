"""The properties of every bucket: no public access, TLS only, encrypted, versioned, owned by this account."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_aws import s3

from components.aws.naming import tags
from components.aws.policies import policy
from observatory.settings.aws import ObjectLock

ABORT_UPLOADS_AFTER_DAYS = 7


@dataclass(frozen=True, kw_only=True)
class BucketArgs:
    """The arguments of a bucket.

    Attributes:
        stack: the stack's name.
        region: of the bucket; None: the stack's region.
        key_arn: KMS key of its objects; None: S3's own key, the only one that load balancers can write with.
        object_lock: retention during which no user can delete an object.
        expire_days: days after which current objects are removed; None: never.
        keep_deleted_days: days during which deleted or replaced objects can be restored.
        log_writer: service that may write logs of this account to it, such as
            `logdelivery.elasticloadbalancing.amazonaws.com`, and the account's id.
    """

    stack: str
    region: str | None = None
    key_arn: pulumi.Input[str] | None = None
    object_lock: ObjectLock | None = None
    expire_days: int | None = None
    keep_deleted_days: int = 1
    log_writer: tuple[str, str] | None = None


class Bucket(pulumi.ComponentResource):
    """One bucket. Outputs: `name`, `arn`. A writer depends on `ready`."""

    def __init__(self, name: str, args: BucketArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Bucket", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        bucket = s3.Bucket(
            name,
            region=args.region,
            object_lock_enabled=args.object_lock is not None,
            force_destroy=False,
            tags=tags(args.stack, name),
            opts=pulumi.ResourceOptions(parent=self, protect=True),
        )
        self.name, self.arn = bucket.bucket, bucket.arn
        s3.BucketPublicAccessBlock(
            name,
            bucket=self.name,
            region=args.region,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=child,
        )
        s3.BucketOwnershipControls(
            name,
            bucket=self.name,
            region=args.region,
            rule=s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            opts=child,
        )
        s3.BucketServerSideEncryptionConfiguration(
            name, bucket=self.name, region=args.region, rules=[_encryption(args.key_arn)], opts=child
        )
        versioning = s3.BucketVersioning(
            name,
            bucket=self.name,
            region=args.region,
            versioning_configuration=s3.BucketVersioningVersioningConfigurationArgs(status="Enabled"),
            opts=child,
        )
        after_versioning = pulumi.ResourceOptions(parent=self, depends_on=[versioning])
        if args.object_lock is not None:
            s3.BucketObjectLockConfiguration(
                name, bucket=self.name, region=args.region, rule=_lock(args.object_lock), opts=after_versioning
            )
        s3.BucketLifecycleConfiguration(
            name, bucket=self.name, region=args.region, rules=[_lifecycle(args)], opts=after_versioning
        )
        policed = s3.BucketPolicy(
            name,
            bucket=self.name,
            region=args.region,
            policy=policy(_tls_only(self.arn), *_log_writer(self.arn, args.log_writer)),
            opts=child,
        )
        self.ready: tuple[pulumi.Resource, ...] = (versioning, policed)
        self.register_outputs({"name": self.name, "arn": self.arn})


def _encryption(key_arn: pulumi.Input[str] | None) -> s3.BucketServerSideEncryptionConfigurationRuleArgs:
    """Encrypt with the key, and with S3's bucket key: a call to KMS for each WAL segment would cost more."""
    default = s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
        sse_algorithm="AES256" if key_arn is None else "aws:kms", kms_master_key_id=key_arn
    )
    return s3.BucketServerSideEncryptionConfigurationRuleArgs(
        apply_server_side_encryption_by_default=default, bucket_key_enabled=key_arn is not None
    )


def _lock(lock: ObjectLock) -> s3.BucketObjectLockConfigurationRuleArgs:
    retention = s3.BucketObjectLockConfigurationRuleDefaultRetentionArgs(mode=lock.mode, days=lock.days)
    return s3.BucketObjectLockConfigurationRuleArgs(default_retention=retention)


def _lifecycle(args: BucketArgs) -> s3.BucketLifecycleConfigurationRuleArgs:
    expiration = (
        s3.BucketLifecycleConfigurationRuleExpirationArgs(expired_object_delete_marker=True)
        if args.expire_days is None
        else s3.BucketLifecycleConfigurationRuleExpirationArgs(days=args.expire_days)
    )
    return s3.BucketLifecycleConfigurationRuleArgs(
        id="expire",
        status="Enabled",
        filter=s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
        expiration=expiration,
        noncurrent_version_expiration=s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
            noncurrent_days=args.keep_deleted_days
        ),
        abort_incomplete_multipart_upload=s3.BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
            days_after_initiation=ABORT_UPLOADS_AFTER_DAYS
        ),
    )


def _log_writer(arn: pulumi.Input[str], writer: tuple[str, str] | None) -> list[dict[str, object]]:
    """Allow the service to write below `PREFIX/AWSLogs/ACCOUNT`: it also writes for every other account of AWS."""
    if writer is None:
        return []
    service, account = writer
    resource = pulumi.Output.concat(arn, f"/*/AWSLogs/{account}/*")
    return [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "s3:PutObject", "Resource": resource}]


def _tls_only(arn: pulumi.Input[str]) -> dict[str, object]:
    return {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [arn, pulumi.Output.concat(arn, "/*")],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
