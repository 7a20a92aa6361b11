"""The paths of a machine's trusted authority, and of its servers' certificates and keys."""

from __future__ import annotations

from observatory.nodes.unit import Paths


def authority_file(paths: Paths) -> str:
    """Return the path of the authority's certificate, by which clients verify servers."""
    return f"{paths.config}/tls/ca.crt"


def certificate_file(paths: Paths, server: str) -> str:
    """Return the path of a server's certificate."""
    return f"{paths.config}/tls/{server}.crt"


def key_file(paths: Paths, server: str) -> str:
    """Return the path of a server's private key."""
    return f"{paths.config}/tls/{server}.key"


def combined_file(paths: Paths, server: str) -> str:
    """Return the path of the file with both certificate and private key, which HAProxy reads."""
    return f"{paths.config}/tls/{server}.pem"
