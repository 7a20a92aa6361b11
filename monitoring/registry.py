"""All alerts of a stack."""

from __future__ import annotations

from monitoring.alerts.application_performance import APPLICATION_PERFORMANCE
from monitoring.alerts.availability import AVAILABILITY
from monitoring.alerts.backup_and_recovery import BACKUP_AND_RECOVERY
from monitoring.alerts.certificates import CERTIFICATES
from monitoring.alerts.database_resources import DATABASE_RESOURCES
from monitoring.alerts.delivery_of_alerts import DELIVERY_OF_ALERTS
from monitoring.alerts.host_jobs import HOST_JOBS

ALERTS = (
    *AVAILABILITY,
    *APPLICATION_PERFORMANCE,
    *DATABASE_RESOURCES,
    *BACKUP_AND_RECOVERY,
    *DELIVERY_OF_ALERTS,
    *HOST_JOBS,
    *CERTIFICATES,
)
