"""The faults that make each alert fire on a running stack, and why some alerts have none."""

from __future__ import annotations

from proofs.alerts.faults.availability import AVAILABILITY
from proofs.alerts.faults.backups import BACKUPS
from proofs.alerts.faults.platform import PLATFORM
from proofs.alerts.faults.writes import WRITES
from proofs.alerts.round import Fault

FAULTS: tuple[Fault, ...] = (*WRITES, *AVAILABILITY, *BACKUPS, *PLATFORM)
THREE_NODES = "needs a replica: a stack has one database node; its rule is tested"
UNPROVEN = {
    "StoragePrimaryCountWrong": THREE_NODES,
    "StorageReplicaDisconnected": THREE_NODES,
    "StorageReplicationLagHigh": THREE_NODES,
    "InfoInhibitor": "has no receiver: it only holds other alerts back; its rule is tested",
}

__all__ = ["FAULTS", "UNPROVEN"]
