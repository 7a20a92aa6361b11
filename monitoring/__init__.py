"""The registry of alerts, and the files that are generated from it.

An alert is one typed record: its expression, labels, texts, runbook, and scenarios that test its rule. Prometheus' rule
file, promtool's unit tests and the runbook pages are generated from these records, so none of them can be missing or
disagree. The package also holds routes, inhibitions and the list of scrape jobs. It does not hold the addresses of
targets and receivers, which the caller passes (`observatory.nodes`).
"""

from monitoring.alertmanager import RECEIVERS, alertmanager_file, webhook_receivers
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step
from monitoring.prometheus_operator import alertmanager_config, prometheus_rule, scrape_config
from monitoring.registry import ALERTS
from monitoring.rules import rule_file, rule_tests
from monitoring.runbooks import runbook_pages
from monitoring.scrape_jobs import JOBS, Job, Platform, jobs_of
from monitoring.thresholds import Thresholds

__all__ = [
    "ALERTS",
    "JOBS",
    "RECEIVERS",
    "Alert",
    "Firing",
    "Job",
    "Platform",
    "Runbook",
    "Scenario",
    "Scope",
    "Step",
    "Thresholds",
    "alertmanager_config",
    "alertmanager_file",
    "jobs_of",
    "prometheus_rule",
    "rule_file",
    "rule_tests",
    "runbook_pages",
    "scrape_config",
    "webhook_receivers",
]
