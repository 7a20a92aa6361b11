"""All alerts of a stack."""

from __future__ import annotations

from monitoring.alerts.availability import AVAILABILITY
from monitoring.alerts.budget import BUDGET
from monitoring.alerts.itself import ITSELF
from monitoring.alerts.jobs import JOBS_OF_THE_HOST

ALERTS = (*AVAILABILITY, *BUDGET, *ITSELF, *JOBS_OF_THE_HOST)
