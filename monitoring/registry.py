"""All alerts of a stack, by category."""

from __future__ import annotations

from monitoring.alerts.application_performance import APPLICATION_PERFORMANCE
from monitoring.alerts.availability import AVAILABILITY
from monitoring.alerts.backup_and_recovery import BACKUP_AND_RECOVERY
from monitoring.alerts.cache import CACHE
from monitoring.alerts.capacity import CAPACITY
from monitoring.alerts.certificates import CERTIFICATES
from monitoring.alerts.collector import COLLECTOR
from monitoring.alerts.connection_pool import CONNECTION_POOL
from monitoring.alerts.data_integrity import DATA_INTEGRITY
from monitoring.alerts.database_resources import DATABASE_RESOURCES
from monitoring.alerts.delivery_of_alerts import DELIVERY_OF_ALERTS
from monitoring.alerts.host_jobs import HOST_JOBS
from monitoring.alerts.query_performance import QUERY_PERFORMANCE
from monitoring.alerts.security import SECURITY
from monitoring.alerts.supervisor import SUPERVISOR
from monitoring.alerts.timescaledb import TIMESCALEDB
from monitoring.model import CATEGORIES

ALERTS = tuple(
    sorted(
        (
            *AVAILABILITY,
            *CONNECTION_POOL,
            *QUERY_PERFORMANCE,
            *APPLICATION_PERFORMANCE,
            *DATABASE_RESOURCES,
            *CACHE,
            *DATA_INTEGRITY,
            *TIMESCALEDB,
            *BACKUP_AND_RECOVERY,
            *CAPACITY,
            *SECURITY,
            *DELIVERY_OF_ALERTS,
            *HOST_JOBS,
            *COLLECTOR,
            *CERTIFICATES,
            *SUPERVISOR,
        ),
        key=lambda alert: CATEGORIES.index(alert.category),
    )
)
