"""Alerts on the health of the monitoring stack: it runs, it delivers alerts, and warnings are handled.

Watchdog and InfoInhibitor follow kube-prometheus.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.scenarios import burst, crossing, repeated
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

ESCALATION = "30m"
# Labels of a warning that its escalation replaces; `rollback` would send it to the scheduler.
DROPPED_BY_ESCALATION = frozenset({"alertname", "alertstate", "category", "component", "rollback", "severity"})
STILL = "90s"  # between two failures: Alertmanager's restart ends sooner
STEP = "0x10 1x20"  # a counter that increases by one after 50 s
# A receiver of warnings fails once in the 5 min between two notifications. Without this the alert would end and page
# again at some of the failures, because there are evaluations at which none lies within the window.
KEEP_FAILING, KEEP_FAILING_S = "1m", 60


def _info_alone(scope: Scope) -> str:
    info = scope.select("ALERTS", 'severity="info"', 'alertstate="firing"')
    severe = scope.select("ALERTS", 'severity=~"warning|critical"', 'alertstate="firing"')
    return f"max by (stack) ({info}) unless on (stack) max by (stack) ({severe})"


def _unattended(scope: Scope) -> str:
    """Return an expression for firing warnings. Their name is in the label `escalated`: `alertname` is the rule's.

    The other labels stay, so that silences and inhibitions of a warning can cover its escalation.
    """
    warnings = scope.select("ALERTS", 'severity="warning"', 'alertstate="firing"')
    named = f'label_replace({warnings}, "escalated", "$1", "alertname", "(.+)")'
    return f"max without ({', '.join(sorted(DROPPED_BY_ESCALATION))}) ({named})"


def _failures(scope: Scope) -> str:
    return f"sum by (stack, rule_group) (increase({scope.select('prometheus_rule_evaluation_failures_total')}[5m])) > 0"


def _undelivered(scope: Scope) -> str:
    """Return an expression for lost notifications; those of one moment to Alertmanager are sent again 15 s later."""
    to_alertmanager = scope.select("prometheus_notifications_errors_total")
    to_receivers = scope.select("alertmanager_notifications_failed_total")
    return (
        f"(sum by (stack, job) (increase({to_alertmanager}[5m]))\n"
        f"and sum by (stack, job) (increase({to_alertmanager}[1m])) > 0\n"
        f"and sum by (stack, job) (increase({to_alertmanager}[1m] offset {STILL})) > 0)\n"
        f"or sum by (stack, job, integration, receiver_name) (increase({to_receivers}[5m])) > 0"
    )


def _reload_failed(scope: Scope) -> str:
    prometheus = scope.select("prometheus_config_last_reload_successful")
    alertmanager = scope.select("alertmanager_config_last_reload_successful")
    return f"{prometheus} == 0\nor {alertmanager} == 0"


def _alert(name: str, severity: str, *, state: str = "firing") -> str:
    return f'ALERTS{{stack="test",alertname="{name}",severity="{severity}",alertstate="{state}"}}'


WATCHDOG = Alert(
    name="Watchdog",
    expression=lambda _scope: "vector(1)",
    severity="none",
    component="monitoring",
    category="platform",
    summary="Monitoring lives: this alert always fires",
    description="Without this notification the receiver must page (value {{ $value }}).",
    runbook=Runbook(
        meaning=(
            "This alert is the dead man's switch. It always fires, through the same rules, routes and network as every "
            "other alert."
        ),
        impact="None while it fires. If its notifications stop, no other alert is delivered either.",
        diagnosis=(
            Step("`observatory status`: check whether `prometheus` and `alertmanager` run."),
            Step(
                "If Prometheus' page `/alerts` shows that Watchdog fires, the delivery has failed: see "
                "`log/alertmanager.log`."
            ),
        ),
        remedy=(Step("Start missing daemons:", ("observatory up",)),),
        escalation=escalation.PLATFORM,
    ),
    fault="Stop Prometheus. The receiver of the dead man's switch pages.",
    scenarios=(
        Scenario(
            name="it fires immediately",
            series={},
            fires=(Firing(at="0s", description="Without this notification the receiver must page (value 1)."),),
        ),
    ),
)

INFO_INHIBITOR = Alert(
    name="InfoInhibitor",
    expression=_info_alone,
    severity="none",
    component="monitoring",
    category="platform",
    summary="Informational alerts fire alone, and are held back",
    description="Only informational alerts fire on {{ $labels.stack }} (value {{ $value }}).",
    runbook=Runbook(
        meaning="It inhibits alerts of severity `info` while no warning or critical alert fires.",
        impact="None. It has no receiver. Prometheus' page `/alerts` shows the inhibited alerts.",
        diagnosis=(Step("No diagnosis is necessary."),),
        remedy=(Step("No action is necessary."),),
        escalation=escalation.PLATFORM,
    ),
    fault="Fire an informational alert alone.",
    scenarios=(
        Scenario(
            name="an informational alert fires alone",
            series={'ALERTS{stack="test",alertname="A",severity="info",alertstate="firing"}': "1x60"},
            fires=(Firing(at="30s", description="Only informational alerts fire on test (value 1)."),),
        ),
        Scenario(
            name="a critical alert fires for a minute",
            series={_alert("A", "info"): "1x60", _alert("B", "critical"): "_x12 1x12 stale"},
            quiet=("70s", "115s"),
            fires=(
                Firing(at="55s", description="Only informational alerts fire on test (value 1)."),
                Firing(at="135s", description="Only informational alerts fire on test (value 1)."),
            ),
        ),
        Scenario(
            name="a warning is pending",
            series={_alert("A", "info"): "1x60", _alert("B", "warning", state="pending"): "1x60"},
            fires=(Firing(at="30s", description="Only informational alerts fire on test (value 1)."),),
        ),
        Scenario(
            name="an informational alert is pending",
            series={_alert("A", "info", state="pending"): "1x60"},
            quiet=("30s",),
        ),
        Scenario(name="only Watchdog fires", series={_alert("Watchdog", "none"): "1x60"}, quiet=("30s",)),
        Scenario(
            name="a warning fires too",
            series={
                'ALERTS{stack="test",alertname="A",severity="info",alertstate="firing"}': "1x60",
                'ALERTS{stack="test",alertname="B",severity="warning",alertstate="firing"}': "1x60",
            },
            quiet=("30s",),
        ),
    ),
)

WARNING_UNATTENDED = Alert(
    name="StorageWarningUnattended",
    expression=_unattended,
    pending=ESCALATION,
    severity="critical",
    component="monitoring",
    category="platform",
    summary="A warning has been firing for half an hour",
    description="{{ $labels.escalated }} still fires after 30 min (value {{ $value }}).",
    runbook=Runbook(
        meaning="A warning was sent to Slack and email half an hour ago and still fires. This alert escalates it.",
        impact="See the runbook of the warning.",
        diagnosis=(Step("Open the runbook of the alert in the description."),),
        remedy=(
            Step("Remove the cause of the warning."),
            Step(
                "`observatory silence create --alert NAME --duration 2h --reason TEXT` mutes the warning and its "
                "escalation."
            ),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Let a warning fire for half an hour.",
    scenarios=(
        Scenario(
            name="a warning fires for more than 30 minutes",
            series={'ALERTS{stack="test",alertname="B",severity="warning",alertstate="firing"}': "1x480"},
            quiet=("29m",),
            fires=(Firing(at="31m", labels={"escalated": "B"}, description="B still fires after 30 min (value 1)."),),
        ),
        Scenario(
            name="a warning ends after 32 minutes; others are pending, critical or informational",
            interval="30s",
            series={
                _alert("B", "warning"): "1x64 stale",
                _alert("C", "warning", state="pending"): "1x80",
                _alert("D", "critical"): "1x80",
                _alert("E", "info"): "1x80",
            },
            quiet=("29m30s", "32m30s"),
            fires=tuple(
                Firing(at=at, labels={"escalated": "B"}, description="B still fires after 30 min (value 1).")
                for at in ("30m", "32m")
            ),
        ),
        Scenario(
            name="a warning of a fleet that also rolls back fires for more than 30 minutes",
            series={
                (
                    'ALERTS{stack="test",alertname="B",severity="warning",alertstate="firing",fleet="blue",'
                    'component="service",category="availability",rollback="true"}'
                ): "1x480"
            },
            fires=(
                Firing(
                    at="31m",
                    labels={"escalated": "B", "fleet": "blue"},
                    description="B still fires after 30 min (value 1).",
                ),
            ),
        ),
    ),
)

RULES_FAILING = Alert(
    name="StorageRuleEvaluationFailing",
    expression=_failures,
    severity="warning",
    component="monitoring",
    category="platform",
    summary="Prometheus cannot evaluate rules: alerts in them are silent",
    description="Group {{ $labels.rule_group }} failed {{ $value | humanize }} times in 5 min.",
    runbook=Runbook(
        meaning="An expression of the group fails, for example because labels do not match one to one.",
        impact="The alerts after the failed rule in this group keep their last state.",
        diagnosis=(Step("Prometheus' page `/rules` shows the error of the rule."),),
        remedy=(
            Step(
                "Correct the expression in `monitoring/` and add a scenario for the failure. Then write the rules:",
                ("observatory up",),
            ),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Add a rule with a many-to-many match.",
    scenarios=(
        burst(
            'prometheus_rule_evaluation_failures_total{stack="test",rule_group="g"}',
            labels={"rule_group": "g"},
            description="Group g failed 1 times in 5 min.",
            others={'prometheus_rule_evaluation_failures_total{stack="test",rule_group="h"}': "0x100"},
        ),
        Scenario(
            name="the evaluation of a group fails",
            series={'prometheus_rule_evaluation_failures_total{stack="test",rule_group="g"}': STEP},
            quiet=("45s",),
            fires=(Firing(at="90s", labels={"rule_group": "g"}, description="Group g failed 1 times in 5 min."),),
        ),
    ),
)

_ERRORS = 'prometheus_notifications_errors_total{stack="test",job="prometheus"}'

NOTIFICATIONS_FAILING = Alert(
    name="StorageNotificationsFailing",
    expression=_undelivered,
    keep_firing=KEEP_FAILING,
    severity="critical",
    component="monitoring",
    category="platform",
    summary="Alerts are not delivered",
    description=(
        "{{ $labels.job }}{{ with $labels.integration }} to {{ . }}{{ end }}"
        "{{ with $labels.receiver_name }} of the receiver {{ . }}{{ end }}"
        " lost {{ $value | humanize }} notifications in 5 min."
    ),
    runbook=Runbook(
        meaning=(
            "Prometheus has not reached Alertmanager for longer than a restart takes, or Alertmanager cannot deliver "
            "to a receiver."
        ),
        impact="Pages can be lost. Watch Prometheus' page `/alerts` until this alert ends.",
        diagnosis=(
            Step("`log/alertmanager.log` in the stack's home has the receiver and its response."),
            Step("`log/prometheus.log` has the reason why Alertmanager is not reachable."),
        ),
        remedy=(
            Step("If a key or an address was rejected, correct the settings of the receiver."),
            Step("Start missing daemons, and load the settings:", ("observatory up",)),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Stop the receiver.",
    scenarios=(
        burst(
            (
                'alertmanager_notifications_failed_total{stack="test",job="alertmanager",integration="slack",'
                'receiver_name="slack"}'
            ),
            labels={"job": "alertmanager", "integration": "slack", "receiver_name": "slack"},
            description="alertmanager to slack of the receiver slack lost 1 notifications in 5 min.",
            keep=KEEP_FAILING_S,
        ),
        Scenario(
            name="Alertmanager restarts, for less than half a minute",
            series={_ERRORS: f"0x29 3x3 {repeated('6', 100)}"},
            quiet=tuple(f"{at}s" for at in range(150, 400, 5)),
        ),
        *(
            Scenario(
                name=f"two notifications are lost, {apart} s apart",
                series={_ERRORS: f"0x29 {repeated('1', apart // 5)} {repeated('2', 100)}"},
                quiet=(f"{begins - 5}s", f"{ends}s"),
                fires=tuple(
                    Firing(
                        at=f"{at}s",
                        labels={"job": "prometheus"},
                        description="prometheus lost 2 notifications in 5 min.",
                    )
                    for at in (begins, ends - 5)
                ),
            )
            for apart, begins, ends in ((45, 240, 315), (100, 250, 360))
        ),
        Scenario(
            name="a receiver of warnings fails every five minutes",
            series={
                (
                    'alertmanager_notifications_failed_total{stack="test",job="alertmanager",integration="email",'
                    'receiver_name="email"}'
                ): f"0x10 {repeated('1', 61)} {repeated('2', 61)} {repeated('3', 61)}"
            },
            fires=tuple(
                Firing(
                    at=f"{at}s",
                    labels={"job": "alertmanager", "integration": "email", "receiver_name": "email"},
                    description="alertmanager to email of the receiver email lost 1 notifications in 5 min.",
                )
                for at in (55, 350, 355, 360, 660, 665)
            ),
        ),
        Scenario(
            name="a receiver rejects notifications",
            series={
                (
                    'alertmanager_notifications_failed_total{stack="test",job="alertmanager",integration="slack",'
                    'receiver_name="slack"}'
                ): STEP,
                (
                    'alertmanager_notifications_failed_total{stack="test",job="alertmanager",integration="pagerduty",'
                    'receiver_name="pagerduty"}'
                ): "0x30",
            },
            quiet=("45s",),
            fires=(
                Firing(
                    at="90s",
                    labels={"job": "alertmanager", "integration": "slack", "receiver_name": "slack"},
                    description="alertmanager to slack of the receiver slack lost 1 notifications in 5 min.",
                ),
            ),
        ),
        Scenario(
            name="Alertmanager is not reachable, and then is",
            interval="15s",
            series={_ERRORS: f"0x20 1+1x20 {repeated('21', 40)}"},
            quiet=("400s", "740s"),
            fires=tuple(
                Firing(
                    at=at, labels={"job": "prometheus"}, description=f"prometheus lost {lost} notifications in 5 min."
                )
                for at, lost in (("405s", 7), ("480s", 12), ("645s", 18))
            ),
        ),
    ),
)

RELOAD_FAILED = Alert(
    name="StorageConfigReloadFailed",
    expression=_reload_failed,
    pending="1m",
    severity="warning",
    component="monitoring",
    category="platform",
    summary="Monitoring runs with an old configuration",
    description="{{ $labels.job }} refused its new configuration (value {{ $value }}).",
    runbook=Runbook(
        meaning=(
            "Prometheus or Alertmanager could not load its configuration files, and continues with the previous "
            "configuration."
        ),
        impact="New alerts and routes have no effect. The daemon cannot start the next time.",
        diagnosis=(
            Step("`log/prometheus.log` or `log/alertmanager.log` in the stack's home has the file and the line."),
        ),
        remedy=(
            Step("Correct `monitoring/` and run its tests. Then write the configuration again:", ("observatory up",)),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Write a rule file that is not YAML, and send SIGHUP.",
    scenarios=(
        *(
            crossing(
                f'{job}_config_last_reload_successful{{stack="test",job="{job}"}}',
                at=1,
                beyond=0,
                pending=60,
                labels={"job": job},
                description=f"{job} refused its new configuration (value 0).",
                others={f'{other}_config_last_reload_successful{{stack="test",job="{other}"}}': "1x200"},
            )
            for job, other in (("prometheus", "alertmanager"), ("alertmanager", "prometheus"))
        ),
        Scenario(
            name="Prometheus rejects its configuration",
            series={'prometheus_config_last_reload_successful{stack="test",job="prometheus"}': "1x5 0x40"},
            quiet=("1m",),
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "prometheus"},
                    description="prometheus refused its new configuration (value 0).",
                ),
            ),
        ),
        Scenario(
            name="Alertmanager rejects its configuration",
            series={'alertmanager_config_last_reload_successful{stack="test",job="alertmanager"}': "1x5 0x40"},
            fires=(
                Firing(
                    at="2m",
                    labels={"job": "alertmanager"},
                    description="alertmanager refused its new configuration (value 0).",
                ),
            ),
        ),
    ),
)

DELIVERY_OF_ALERTS = (WATCHDOG, INFO_INHIBITOR, WARNING_UNATTENDED, RULES_FAILING, NOTIFICATIONS_FAILING, RELOAD_FAILED)
