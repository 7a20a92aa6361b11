"""Alerts on a running stack: a fault, the page at the receiver, the runbook's commands, and the end of the alert."""

from proofs.alerts.prove import prove

__all__ = ["prove"]
