"""A monitoring certificate of an authority of its own, in files."""

from __future__ import annotations

from pathlib import Path

from observatory.nodes import Paths
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.runtime import Sandbox
from observatory.security.certificates import issue, make_authority
from observatory.security.client_certificate import ClientCertificate


def monitoring_certificate(directory: Path) -> ClientCertificate:
    """Write a certificate and its authority to a directory, and return them."""
    made = ClientCertificate(certificate=directory / "monitoring.pem", authority=directory / "ca.crt")
    authority = make_authority("test")
    issued = issue(authority, name=MONITORING, hosts=["127.0.0.1"], client=True)
    made.authority.write_text(authority.certificate)
    made.certificate.write_text(issued.combined)
    return made


def sandbox_certificate(sandbox: Sandbox, directory: Path) -> ClientCertificate:
    """Write a certificate and its authority to their places in a sandbox, and return them."""
    made = monitoring_certificate(directory)
    authority, certificate = authority_file(Paths()), combined_file(Paths(), MONITORING)
    sandbox.write_file(authority, made.authority.read_text())
    sandbox.write_file(certificate, made.certificate.read_text())
    return ClientCertificate(certificate=sandbox.host_path(certificate), authority=sandbox.host_path(authority))
