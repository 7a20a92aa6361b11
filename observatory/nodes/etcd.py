"""etcd: the distributed configuration store in which Patroni keeps the leader's lease.

A client that writes there controls Patroni, so etcd accepts only clients and peers with a client certificate of the
stack's authority. Health and metrics are read over plain HTTP, on a port that serves nothing else.
"""

from __future__ import annotations

from observatory.nodes.tls import authority_file, certificate_file, key_file
from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, Unit, yaml_text
from observatory.settings import StackSettings

SERVER = "etcd"  # of the certificate; etcd's HTTP gateway is also a client, of etcd itself


def etcd(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the single etcd member of a one-node stack; only its metrics are reachable beyond loopback."""
    ports = settings.ports
    client, peer = f"https://127.0.0.1:{ports.etcd_client}", f"https://127.0.0.1:{ports.etcd_peer}"
    mutual_tls = {
        "trusted-ca-file": authority_file(paths),
        "cert-file": certificate_file(paths, SERVER),
        "key-file": key_file(paths, SERVER),
        "client-cert-auth": True,
    }
    config = {
        "name": "node1",
        "data-dir": f"{paths.data}/etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-metrics-urls": f"http://{host.listen}:{ports.etcd_metrics}",
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"node1={peer}",
        "initial-cluster-state": "new",
        "client-transport-security": dict(mutual_tls),
        "peer-transport-security": dict(mutual_tls),
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "logger": "zap",
        "log-level": "warn",
    }
    file = f"{paths.config}/etcd/etcd.yaml"
    return Unit(
        name="etcd",
        command=("/usr/bin/etcd", "--config-file", file),
        ready=HttpReady(port=ports.etcd_metrics, path="/health"),
        priority=10,
        ports={f"ports.{name}": getattr(ports, name) for name in ("etcd_client", "etcd_peer", "etcd_metrics")},
        files={file: yaml_text(config)},
        directories=(f"{paths.data}/etcd",),
        watches_secrets=True,  # it reads its certificate at each connection
    )
