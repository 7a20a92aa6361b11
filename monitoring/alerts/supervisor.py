"""The alert on the supervisor of a local stack.

The watcher writes the metrics of the supervisor to a file that node_exporter reads, and which outlives the watcher.
systemd on AWS has no such series.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import UP
from monitoring.alerts.scenarios import BRIDGE, vanishing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

MAX_HEARTBEAT_AGE_S = 30  # the watcher writes a heartbeat every 5 s
DEATH_S = 300  # how long the alert fires after a supervisor that was restarted


def _supervisor_down(scope: Scope) -> str:
    """Return an expression whose label `state` says what is wrong; its value has no meaning of its own."""
    up = scope.select("observatory_supervisor_up")
    heartbeat = scope.select("observatory_watcher_heartbeat_timestamp_seconds")
    death = scope.select("observatory_supervisor_last_death_timestamp_seconds")
    states = {
        "does not run": f"max by (stack) (last_over_time({up}[{BRIDGE}])) == 0",
        "is not watched": f"time() - max by (stack) (last_over_time({heartbeat}[{BRIDGE}])) > {MAX_HEARTBEAT_AGE_S}",
        "had died and was restarted": f"time() - max by (stack) (last_over_time({death}[{BRIDGE}])) < {DEATH_S}",
    }
    return "\nor ".join(
        f'label_replace({condition}, "state", "{state}", "", "")' for state, condition in states.items()
    )


SUPERVISOR_DOWN = Alert(
    name="StorageSupervisorDown",
    expression=_supervisor_down,
    pending="10s",  # after a suspension of the machine the last heartbeat is old until the next one
    severity="critical",
    component="database",
    category="platform",
    summary="The supervisor of the daemons is gone, or was restarted with all daemons",
    description="The supervisor of {{ $labels.stack }} {{ $labels.state }} ({{ $value | humanize }}).",
    runbook=Runbook(
        meaning=(
            "supervisord restarts the daemons of a local stack. It does not run, or the watcher restarted it within the"
            " last 5 min, or the watcher has been silent for 30 s."
        ),
        impact=(
            "A restart of the supervisor restarts every daemon: it cannot adopt running ones. All requests fail for "
            "some seconds, and no acknowledged row is lost. While it is gone, the daemons continue, and nothing "
            "restarts one that ends."
        ),
        diagnosis=(
            Step("`observatory status`: the rows `supervisor`, `watcher` and `scheduler`."),
            Step("`log/watcher.log` in the stack's home has each restart, and the reason if one failed."),
            Step("`dmesg`: the kernel kills processes when the machine has too little memory."),
        ),
        remedy=(
            UP,
            Step("After a restart no action is necessary. The alert ends after 5 min."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Kill the supervisor; then the watcher and the scheduler at once.",
    scenarios=(
        vanishing(
            'observatory_supervisor_up{stack="test",job="node"}',
            beyond=0,
            pending=10,
            labels={"state": "does not run"},
            description="The supervisor of test does not run (0).",
        ),
        vanishing(
            'observatory_supervisor_last_death_timestamp_seconds{stack="test",job="node"}',
            beyond=0,
            pending=10,
            labels={"state": "had died and was restarted"},
            description="The supervisor of test had died and was restarted (120).",
        ),
        vanishing(
            'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}',
            beyond=-10,
            pending=10,
            labels={"state": "is not watched"},
            description="The supervisor of test is not watched (130).",
        ),
        Scenario(
            name="the watcher is silent for 31 s",
            interval="1s",
            series={'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+1x60 60x60"},
            quiet=("100s",),
            fires=(
                Firing(
                    at="101s",
                    labels={"state": "is not watched"},
                    description="The supervisor of test is not watched (41).",
                ),
            ),
        ),
        Scenario(
            name="the machine was suspended, and the watcher beats within its interval",
            series={'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}': "-1e6x1 10+5x60"},
            quiet=("5s", "10s", "15s", "1m"),
        ),
        Scenario(
            name="the supervisor was restarted five minutes ago",
            series={'observatory_supervisor_last_death_timestamp_seconds{stack="test",job="node"}': "60x90"},
            quiet=("6m",),
            fires=(
                Firing(
                    at="355s",
                    labels={"state": "had died and was restarted"},
                    description="The supervisor of test had died and was restarted (295).",
                ),
            ),
        ),
        Scenario(
            name="the supervisor does not start again",
            series={'observatory_supervisor_up{stack="test",job="node"}': "1x6 0x30"},
            quiet=("40s",),
            fires=(
                Firing(
                    at="45s",
                    labels={"state": "does not run"},
                    description="The supervisor of test does not run (0).",
                ),
            ),
        ),
        Scenario(
            name="the watcher stops after a minute",
            series={'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+5x12 60x60"},
            quiet=("1m", "100s"),
            fires=(
                Firing(
                    at="105s",
                    labels={"state": "is not watched"},
                    description="The supervisor of test is not watched (45).",
                ),
            ),
        ),
        Scenario(
            name="the supervisor was restarted at 60 s",
            series={
                'observatory_supervisor_up{stack="test",job="node"}': "1x90",
                'observatory_watcher_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+5x90",
                'observatory_supervisor_last_death_timestamp_seconds{stack="test",job="node"}': "-1e6x12 60x78",
            },
            quiet=("1m", "6m10s"),
            fires=(
                Firing(
                    at="2m",
                    labels={"state": "had died and was restarted"},
                    description="The supervisor of test had died and was restarted (60).",
                ),
            ),
        ),
    ),
)

SUPERVISOR = (SUPERVISOR_DOWN,)
