"""What all machines of the stack share: the root volume's size, and the options of the metadata service."""

from __future__ import annotations

from pulumi_aws import ec2

ROOT_GIB = 20
ROOT_DEVICE = "/dev/xvda"  # of Debian's images
# One hop: a forged request through a container or proxy on the machine gets no token.
METADATA_HOPS = 1


def metadata_options() -> ec2.InstanceMetadataOptionsArgs:
    """Return the options of an instance's metadata service: version 2 only."""
    return ec2.InstanceMetadataOptionsArgs(
        http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=METADATA_HOPS
    )


def template_metadata_options() -> ec2.LaunchTemplateMetadataOptionsArgs:
    """Return the same for a launch template."""
    return ec2.LaunchTemplateMetadataOptionsArgs(
        http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=METADATA_HOPS
    )
