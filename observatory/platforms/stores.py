"""Where a stack's rollout document, releases and approvals are: files of the checkout on this machine, a bucket on AWS.

The program and the commands find them here, so that they never look at different ones.
"""

from __future__ import annotations

from observatory.delivery.environment import Approvals, Releases, RolloutStore
from observatory.settings import StackSettings
from observatory.workspace import Workspace


def rollout_store(workspace: Workspace, settings: StackSettings) -> RolloutStore:
    """Return the store of a stack's rollout document."""
    if settings.platform == "local":
        return workspace.rollout
    from observatory.platforms.aws.clients import client  # noqa: PLC0415 - boto3 only where AWS is asked
    from observatory.platforms.aws.documents import S3RolloutStore  # noqa: PLC0415

    there = settings  # what a stack on another platform is read as
    return S3RolloutStore(
        client=client("s3", there.account.region), bucket=there.release_bucket, key=there.rollout_key(workspace.stack)
    )


def release_store(workspace: Workspace, settings: StackSettings) -> Releases:
    """Return the store of the versions that may be deployed."""
    if settings.platform == "local":
        return workspace.releases
    from observatory.platforms.aws.clients import client  # noqa: PLC0415 - boto3 only where AWS is asked
    from observatory.platforms.aws.documents import S3ReleaseStore  # noqa: PLC0415

    there = settings
    return S3ReleaseStore(client=client("s3", there.account.region), bucket=there.release_bucket)


def approval_store(workspace: Workspace, settings: StackSettings) -> Approvals:
    """Return the store of the approvals that people gave for the stack."""
    if settings.platform == "local":
        return workspace.approvals
    from observatory.platforms.aws.clients import client  # noqa: PLC0415 - boto3 only where AWS is asked
    from observatory.platforms.aws.documents import S3Approvals  # noqa: PLC0415

    there = settings
    return S3Approvals(client=client("s3", there.account.region), bucket=there.release_bucket, stack=workspace.stack)
