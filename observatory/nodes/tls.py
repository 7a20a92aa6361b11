"""Where a machine keeps the authority it trusts, and its servers' certificates and keys."""

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
    """Return the path of certificate and private key in one file, as HAProxy takes them."""
    return f"{paths.config}/tls/{server}.pem"
