"""The backup buckets: each is a repository of pgBackRest, with base backups and WAL of its own.

The second is in another region, where the settings name one. The database's machine writes to both, at the times of its
timers, so the loss of a bucket, of a region or of a passphrase leaves a whole repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from components.aws.buckets import Bucket, BucketArgs
from components.aws.encryption import Encryption
from components.aws.policies import Allow
from observatory.nodes.pgbackrest import S3Repository, s3_prefix
from observatory.settings import AwsSettings


@dataclass(frozen=True, kw_only=True)
class BackupsArgs:
    """The stack's name and settings, and its keys."""

    stack: str
    settings: AwsSettings
    encryption: Encryption


@dataclass(frozen=True, kw_only=True)
class Place:
    """A repository: its bucket, its region, and the ARN of its KMS key."""

    bucket: Bucket
    region: str
    key_arn: pulumi.Input[str]


class Backups(pulumi.ComponentResource):
    """The repositories. Outputs: `stores`, their addresses; `places`, which the database writes to."""

    def __init__(self, name: str, args: BackupsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Backups", name, None, opts)
        self._args = args
        own, off_site = args.settings.account.region, args.settings.backups.off_site_region
        keys = args.encryption
        self.places = [Place(bucket=self._bucket(name, key_arn=keys.key_arn), region=own, key_arn=keys.key_arn)]
        if off_site is not None and keys.off_site_key_arn is not None:
            bucket = self._bucket(f"{name}-off-site", key_arn=keys.off_site_key_arn, region=off_site)
            self.places.append(Place(bucket=bucket, region=off_site, key_arn=keys.off_site_key_arn))
        self.stores = [
            pulumi.Output.concat("s3://", place.bucket.name, s3_prefix(number))
            for number, place in enumerate(self.places, 1)
        ]
        self.register_outputs({"stores": self.stores})

    @property
    def repositories(self) -> pulumi.Output[tuple[S3Repository, ...]]:
        """The repositories as pgBackRest is configured with them."""
        places = [pulumi.Output.all(place.bucket.name, place.region, place.key_arn) for place in self.places]
        return pulumi.Output.all(*places).apply(
            lambda found: tuple(S3Repository(bucket=name, region=region, key=key) for name, region, key in found)
        )

    @property
    def rights(self) -> tuple[Allow, ...]:
        """The permissions of pgBackRest: it reads, writes and expires objects of its repositories."""
        return tuple(each for place in self.places for each in _rights(place))

    def _bucket(self, name: str, *, key_arn: pulumi.Input[str], region: str | None = None) -> Bucket:
        lock = self._args.settings.backups.object_lock
        args = BucketArgs(
            stack=self._args.stack, region=region, key_arn=key_arn, object_lock=lock, keep_deleted_days=lock.days
        )
        return Bucket(name, args, pulumi.ResourceOptions(parent=self))


def _rights(place: Place) -> tuple[Allow, ...]:
    return (
        Allow(actions=("s3:ListBucket",), resources=(place.bucket.arn,)),
        Allow(
            actions=("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
            resources=(pulumi.Output.concat(place.bucket.arn, "/*"),),
        ),
        Allow(actions=("kms:GenerateDataKey", "kms:Decrypt"), resources=(place.key_arn,)),
    )
