"""The registry of alerts, and what is generated from it.

An alert is one typed record: its expression, labels, texts, runbook and the scenarios that prove its rule. Generated
from the records are Prometheus' rule file, promtool's unit tests and a runbook page each, so none of them can be
missing or disagree. Routes, inhibitions and the list of scrape jobs are here too. Nothing here knows a machine: where
targets and receivers are, the caller says (`observatory.nodes`).
"""

from monitoring.alertmanager import RECEIVERS, alertmanager_file, webhook_receivers
from monitoring.jobs import JOBS, Job, Platform, jobs_of
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope
from monitoring.operator import alertmanager_config, prometheus_rule, scrape_config
from monitoring.registry import ALERTS
from monitoring.rules import rule_file, rule_tests
from monitoring.runbooks import runbook_pages

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
