"""Clients of AWS services, with timeouts that suit a deployment.

boto3 takes a third of a second to import: import this module only where AWS is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient

# A lost connection is retried within seconds. A retry may follow a first attempt that succeeded: stores detect that.
CONFIG = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 4})


@overload
def client(service: Literal["s3"], region: str) -> S3Client: ...
@overload
def client(service: Literal["elbv2"], region: str) -> ElasticLoadBalancingv2Client: ...
@overload
def client(service: Literal["autoscaling"], region: str) -> AutoScalingClient: ...
@overload
def client(service: Literal["secretsmanager"], region: str) -> SecretsManagerClient: ...
def client(service: Any, region: str) -> Any:
    """Return a client of a service, with the credentials of the environment."""
    return boto3.client(service, region_name=region, config=CONFIG)


@contextlib.contextmanager
def aws_errors(place: str, kind: type[Exception], *, remedy: str = "") -> Iterator[None]:
    """Raise `kind` for an error of AWS; its message starts with the place and ends with the remedy."""
    try:
        yield
    except (ClientError, BotoCoreError, ResponseParserError) as error:
        raise kind(f"{place}: {error}{f'; {remedy}' if remedy else ''}") from error
