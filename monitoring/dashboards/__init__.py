"""Dashboards: one model of panels, from which Grafana's JSON is generated and which the console draws.

`python -m monitoring` writes Grafana's JSON to `generated/`. Only that needs Grafana's SDK.
"""

from monitoring.dashboards.backups import BACKUPS
from monitoring.dashboards.database import DATABASE
from monitoring.dashboards.delivery import DELIVERY
from monitoring.dashboards.model import (
    Annotation,
    Dashboard,
    Kind,
    Panel,
    Query,
    Section,
    Thresholds,
    Unbounded,
    Unit,
)
from monitoring.dashboards.overview import OVERVIEW
from monitoring.dashboards.service import SERVICE
from monitoring.dashboards.timescaledb import TIMESCALEDB

DASHBOARDS = (OVERVIEW, SERVICE, DELIVERY, DATABASE, TIMESCALEDB, BACKUPS)

__all__ = [
    "DASHBOARDS",
    "Annotation",
    "Dashboard",
    "Kind",
    "Panel",
    "Query",
    "Section",
    "Thresholds",
    "Unbounded",
    "Unit",
]
