"""The faults that make each alert fire on a running stack, and why some alerts have none."""

from __future__ import annotations

from proofs.alerts.faults.availability import AVAILABILITY
from proofs.alerts.faults.backups import BACKUPS
from proofs.alerts.faults.database import CPU, DATABASE
from proofs.alerts.faults.disk_io import DISK_IO
from proofs.alerts.faults.platform import PLATFORM
from proofs.alerts.faults.resources import RESOURCES
from proofs.alerts.faults.sessions import SESSIONS
from proofs.alerts.faults.writes import WRITES
from proofs.alerts.round import Fault

# Error budgets come first: their windows reach over the failed writes of other faults. The pressure on CPU and disk
# comes last: the other stacks of the proof make it as well.
FAULTS: tuple[Fault, ...] = (
    *WRITES,
    *AVAILABILITY,
    *SESSIONS,
    *DATABASE,
    *RESOURCES,
    *BACKUPS,
    *PLATFORM,
    *CPU,
    *DISK_IO,
)
THREE_NODES = "needs a replica: a stack has one database node; its rule is tested"
UNPROVEN = {
    "StoragePrimaryCountWrong": THREE_NODES,
    "StorageReplicaDisconnected": THREE_NODES,
    "StorageReplicationLagHigh": THREE_NODES,
    "InfoInhibitor": "has no receiver: it only holds other alerts back; its rule is tested",
    "Watchdog": "always fires; what pages when it stops is tested in tests/nodes/test_alert_receiver.py",
}

__all__ = ["FAULTS", "UNPROVEN"]
