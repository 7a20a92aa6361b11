"""What Patroni keeps in its configuration store about a server, and how to remove it when the server's data changes."""

from __future__ import annotations

from observatory.nodes.postgres import SCOPE, STORE_CLIENT
from observatory.nodes.tls import authority_file, certificate_file, key_file
from observatory.nodes.unit import Paths

ETCDCTL = "/usr/bin/etcdctl"
# Of the leader and its WAL. `status` has the position of the last leader, before which Patroni promotes no server.
# `initialize` stays, without which Patroni would create a new database, and `config` has the settings.
OF_THE_LEADER = ("failover", "failsafe", "history", "leader", "status", "sync")


def forget_leader_command(paths: Paths, port: int) -> tuple[tuple[str, ...], str]:
    """Return the command line, and its standard input, that removes what the store has of the leader in one step."""
    argv = (
        ETCDCTL,
        f"--endpoints=https://127.0.0.1:{port}",
        f"--cacert={authority_file(paths)}",
        f"--cert={certificate_file(paths, STORE_CLIENT)}",
        f"--key={key_file(paths, STORE_CLIENT)}",
        "txn",
    )
    deletions = "".join(f"del /service/{SCOPE}/{name}\n" for name in OF_THE_LEADER)
    return argv, f"\n{deletions}\n\n"  # no comparison, the operations, and none if a comparison fails
