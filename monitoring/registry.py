"""All alerts of a stack."""

from __future__ import annotations

from monitoring.alerts.availability import AVAILABILITY
from monitoring.alerts.backups import BACKUPS
from monitoring.alerts.certificates import CERTIFICATES
from monitoring.alerts.error_budget import ERROR_BUDGET
from monitoring.alerts.host_jobs import HOST_JOBS
from monitoring.alerts.machine import MACHINE
from monitoring.alerts.monitoring_health import MONITORING_HEALTH

ALERTS = (
    *AVAILABILITY,
    *ERROR_BUDGET,
    *MACHINE,
    *BACKUPS,
    *MONITORING_HEALTH,
    *HOST_JOBS,
    *CERTIFICATES,
)
