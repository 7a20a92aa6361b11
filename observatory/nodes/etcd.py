"""etcd: the distributed configuration store in which Patroni keeps the leader's lease."""

from __future__ import annotations

import yaml

from observatory.nodes.unit import HttpReady, Paths, Unit
from observatory.settings import StackSettings


def etcd(settings: StackSettings, paths: Paths) -> Unit:
    """Return the single etcd member of a one-node stack, on loopback."""
    ports = settings.ports
    client, peer = f"http://127.0.0.1:{ports.etcd_client}", f"http://127.0.0.1:{ports.etcd_peer}"
    config = {
        "name": "node1",
        "data-dir": f"{paths.data}/etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"node1={peer}",
        "initial-cluster-state": "new",
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "logger": "zap",
        "log-level": "warn",
    }
    file = f"{paths.config}/etcd/etcd.yaml"
    return Unit(
        name="etcd",
        command=("/usr/bin/etcd", "--config-file", file),
        ready=HttpReady(port=ports.etcd_client, path="/health"),
        priority=10,
        ports={"ports.etcd_client": ports.etcd_client, "ports.etcd_peer": ports.etcd_peer},
        files={file: yaml.safe_dump(config, sort_keys=False)},
        directories=(f"{paths.data}/etcd",),
    )
