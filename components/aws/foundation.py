"""The resources that every part of an AWS stack depends on."""

from __future__ import annotations

from dataclasses import dataclass

from components.aws.encryption import Encryption
from components.aws.firewall import Firewall
from components.aws.network import Network
from observatory.settings import AwsSettings


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """The stack's name and settings, its network, its security groups and its keys."""

    stack: str
    settings: AwsSettings
    network: Network
    firewall: Firewall
    encryption: Encryption
