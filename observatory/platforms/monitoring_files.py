"""The files of this machine by which commands use a stack's Prometheus and Alertmanager."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from observatory.security.client_certificate import ClientCertificate
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class MonitoringFiles:
    """Files by which commands use a stack's monitoring; None where there is none.

    Attributes:
        client: the certificate that Prometheus and Alertmanager require.
        silences: the file that Alertmanager writes its silences to.
    """

    client: ClientCertificate | None = None
    silences: Path | None = None


def monitoring_files(workspace: Workspace) -> MonitoringFiles:
    """Return the files in the stack's home.

    A stack that an earlier version brought up has no certificate. On AWS the cluster runs Prometheus and Alertmanager,
    and limits who reaches them.
    """
    from observatory.nodes import Paths  # noqa: PLC0415 - only where monitoring is used
    from observatory.nodes.alertmanager import silences_file  # noqa: PLC0415
    from observatory.nodes.tls import MONITORING, authority_file, combined_file  # noqa: PLC0415

    paths = Paths(config=str(workspace.home / "etc"), data=str(workspace.home / "data"))
    certificate, silences = Path(combined_file(paths, MONITORING)), Path(silences_file(paths))
    client = ClientCertificate(certificate=certificate, authority=Path(authority_file(paths)))
    return MonitoringFiles(
        client=client if certificate.exists() else None, silences=silences if silences.exists() else None
    )
