"""Who may use the HTTP listeners of monitoring: on `local` only holders of the stack's monitoring certificate.

Every local user can connect to a port of loopback, so Prometheus, Alertmanager, the exporters and HAProxy's statistics
require a client certificate of the stack's authority. Clients send no secret, so a program that takes the port of a
stopped daemon learns nothing. On AWS these ports are reachable from the operations VPC only, and have no certificate.

The daemons read the certificate at each connection, so a renewed one needs no restart.
"""

from __future__ import annotations

from dataclasses import dataclass

from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, yaml_text


@dataclass(frozen=True, kw_only=True)
class WebAccess:
    """The access to one daemon's HTTP listener, by Prometheus' exporter toolkit.

    Attributes:
        name: of the unit.
        paths: of the machine.
        host: its addresses; only listeners of loopback require a certificate.
    """

    name: str
    paths: Paths
    host: Host = LOOPBACK

    @property
    def guarded(self) -> bool:
        """Whether the listener requires a client certificate."""
        return self.host == LOOPBACK

    @property
    def options(self) -> tuple[str, ...]:
        """The options of the command line."""
        return (f"--web.config.file={self._file}",) if self.guarded else ()

    @property
    def files(self) -> dict[str, str]:
        """The files that the options name."""
        return {self._file: web_config(self.paths)} if self.guarded else {}

    def ready(self, port: int, path: str) -> HttpReady:
        """Return the probe of the listener."""
        return guarded_probe(self.paths, port, path) if self.guarded else HttpReady(port=port, path=path)

    @property
    def _file(self) -> str:
        return f"{self.paths.config}/{self.name}/web.yaml"


def guarded_probe(paths: Paths, port: int, path: str) -> HttpReady:
    """Return a probe that shows the monitoring certificate."""
    return HttpReady(
        port=port, path=path, certificate=combined_file(paths, MONITORING), authority=authority_file(paths)
    )


def web_config(paths: Paths) -> str:
    """Return the toolkit's file by which a listener requires a client certificate of the stack's authority.

    See https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md.
    """
    certificate = combined_file(paths, MONITORING)
    server = {
        "cert_file": certificate,
        "key_file": certificate,
        "client_auth_type": "RequireAndVerifyClientCert",
        "client_ca_file": authority_file(paths),
        "min_version": "TLS12",
    }
    return yaml_text({"tls_server_config": server})


def client_config(paths: Paths) -> dict[str, str]:
    """Return the `tls_config` by which Prometheus and Alertmanager show the certificate and verify servers."""
    certificate = combined_file(paths, MONITORING)
    return {"ca_file": authority_file(paths), "cert_file": certificate, "key_file": certificate}
