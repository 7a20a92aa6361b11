"""Publishes when each certificate of a `local` stack expires, as metrics for Prometheus."""

from __future__ import annotations

from observatory.nodes import Paths
from observatory.nodes.tls import certificates_directory
from observatory.runtime import Sandbox

METRICS_FILE = "certificates.prom"
METRIC = "observatory_certificate_expiry_timestamp_seconds"


def publish_certificates(sandbox: Sandbox) -> None:
    """Write the expiry of each certificate to a file that node_exporter reads.

    Raises:
        ValueError: a file has no certificate.
    """
    from observatory.security.certificates import validities  # noqa: PLC0415 - cryptography only where it is used

    paths = Paths()
    found = validities(sandbox.host_path(certificates_directory(paths)))
    lines = [f"# HELP {METRIC} When the certificate expires.", f"# TYPE {METRIC} gauge"]
    for each in found:
        kind = "authority" if each.authority else "server"
        lines.append(f'{METRIC}{{name="{each.name}",kind="{kind}"}} {each.ends.timestamp():.0f}')
    sandbox.write_file(f"{paths.textfiles}/{METRICS_FILE}", "".join(f"{line}\n" for line in lines))
