"""All alerts of a stack."""

from __future__ import annotations

from monitoring.alerts.availability import AVAILABILITY
from monitoring.alerts.itself import ITSELF

ALERTS = (*AVAILABILITY, *ITSELF)
