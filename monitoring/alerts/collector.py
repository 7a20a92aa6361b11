"""The alert on the collector's queries: an exporter that is up while its queries return nothing blinds its alerts."""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import UP, logs, superuser
from monitoring.alerts.scenarios import BRIDGE, gauge
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step


def _failed(scope: Scope) -> str:
    """Return an expression for the queries that fail; without PostgreSQL all do, and StorageDatabaseDown fires."""
    success = scope.select("storage_collector_success")
    database = scope.select("pg_up")
    return (
        f"(max by (stack, query) (last_over_time({success}[{BRIDGE}])) == 0\n"
        f"unless on (stack) min by (stack) (last_over_time({database}[{BRIDGE}])) == 0)\n"
        f"or absent({success})"
    )


PENDING_S = 90  # three runs of a query of every 30 s: a busy server may let one or two take too long
_SUCCESS = 'storage_collector_success{{stack="test",job="collector",instance="two",query="{}"}}'
_DATABASE = 'pg_up{stack="test",job="postgres",instance="one"}'
_JOBS = Firing(at="4m", labels={"query": "jobs"}, description="Query jobs of the collector returns nothing (value 0).")

QUERY_FAILED = Alert(
    name="StorageCollectorQueryFailed",
    expression=_failed,
    pending=f"{PENDING_S}s",
    severity="critical",
    component="monitoring",
    category="platform",
    shown_on="database",
    summary="A query of the collector fails: its alerts are blind",
    description="Query {{ $labels.query }} of the collector returns nothing (value {{ $value }}).",
    runbook=Runbook(
        meaning="The collector runs, and one of its queries has failed, returned no row, or taken too long for 90 s.",
        impact="The alerts on the values of this query cannot fire.",
        diagnosis=(Step("Read the error of the query.", (logs("collector"),)),),
        remedy=(
            Step(
                "Make the collector's role a member of pg_monitor again, and start what is missing.",
                (superuser("GRANT pg_monitor TO monitor GRANTED BY provisioner"), *UP.commands),
            ),
            Step("If the query takes too long: check whether StorageLockWaits or StorageIoStall fires."),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Take a privilege of the collector's role away.",
    scenarios=(
        *gauge(
            _SUCCESS.format("jobs"),
            at=1,
            beyond=0,
            pending=PENDING_S,
            labels={"query": "jobs"},
            description="Query jobs of the collector returns nothing (value 0).",
            others={_SUCCESS.format("chunks"): "1x200", _DATABASE: "1x200"},
        ),
        Scenario(
            name="PostgreSQL is down, then its exporter is too, then the queries fail for another reason",
            series={
                _SUCCESS.format("jobs"): "0x72",
                _DATABASE: "0x12 stale _x59",
            },
            quiet=("50s", "115s", "205s"),
            fires=(_JOBS,),
        ),
        Scenario(
            name="two runs take too long",
            series={_SUCCESS.format("jobs"): "1x12 0x12 1x60", _DATABASE: "1x90"},
            quiet=("90s", "125s", "150s"),
        ),
        Scenario(
            name="the collector exports no result",
            series={},
            quiet=("85s",),
            fires=(Firing(at="90s", description="Query  of the collector returns nothing (value 1)."),),
        ),
    ),
)

COLLECTOR = (QUERY_FAILED,)
