"""The paths of a machine's trusted authority, and of its servers' certificates and keys."""

from __future__ import annotations

from observatory.nodes.unit import Paths

MONITORING = "monitoring"  # the certificate that monitoring's servers and clients show to each other


def certificates_directory(paths: Paths) -> str:
    """Return the directory of all certificates of the machine."""
    return f"{paths.config}/tls"


def authority_file(paths: Paths) -> str:
    """Return the path of the authority's certificate, by which clients verify servers."""
    return f"{certificates_directory(paths)}/ca.crt"


def certificate_file(paths: Paths, server: str) -> str:
    """Return the path of a server's certificate."""
    return f"{certificates_directory(paths)}/{server}.crt"


def key_file(paths: Paths, server: str) -> str:
    """Return the path of a server's private key."""
    return f"{certificates_directory(paths)}/{server}.key"


def combined_file(paths: Paths, server: str) -> str:
    """Return the path of the file with both certificate and private key, which HAProxy reads."""
    return f"{certificates_directory(paths)}/{server}.pem"
