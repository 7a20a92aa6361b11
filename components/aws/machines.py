"""What every machine of the stack has in common: a root volume's size, and metadata for the machine itself alone."""

from __future__ import annotations

from pulumi_aws import ec2

ROOT_GIB = 20
ROOT_DEVICE = "/dev/xvda"  # of Debian's images
# No hop further than the machine: a container or proxy on it that is talked into a request gets no token.
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
