"""Clients of AWS' services, with times to answer that a deployment can live with.

boto3 takes a third of a second to import: only what asks AWS imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient

# A lost connection is tried again within seconds; what a retry may meet, its own first attempt, stores settle.
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
    """Return a client of a service, with the credentials that the environment offers."""
    return boto3.client(service, region_name=region, config=CONFIG)
