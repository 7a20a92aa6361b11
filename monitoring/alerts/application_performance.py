"""Alerts on the error budget of writes: burn rates over two windows each, as in Google's SRE Workbook, chapter 5.

The long window shows that the failures are significant, the short one that they continue. A ratio of few writes is not
significant: below `MINIMUM_WRITES` in the short window, the number of failed writes is used instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monitoring.alerts import escalation
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

OBJECTIVE = 0.999  # share of successful writes over 30 days
MINIMUM_WRITES = 100
FAILED = 'status="error"'
MINUTE = "1m"  # interval of the samples in the scenarios below
BLUE = 'storage_writes_total{{stack="test",fleet="blue",instance="one",status="{}"}}'


@dataclass(frozen=True, kw_only=True)
class Burn:
    """A burn rate over a long and a short window.

    Attributes:
        rate: multiple of the rate that uses up the budget in 30 days.
        long: long window.
        short: short window.
        failed: failed writes in the short window that fire the alert where there are too few writes for a ratio.
    """

    rate: float
    long: str
    short: str
    failed: int


FAST = Burn(rate=14.4, long="1h", short="5m", failed=10)  # 2 % of the budget in an hour
SLOW = Burn(rate=6, long="6h", short="30m", failed=30)  # 5 % of the budget in six hours


def _burns(burn: Burn) -> Callable[[Scope], str]:
    """Return an expression for fleets above a burn rate; its value is their failure ratio in the short window."""

    def expression(scope: Scope) -> str:
        def writes(window: str, *matchers: str) -> str:
            return f"sum by (stack, fleet) (increase({scope.select('storage_writes_total', *matchers)}[{window}]))"

        def ratio(window: str) -> str:
            return f"{writes(window, FAILED)} / {writes(window)}"

        limit = f"{burn.rate * (1 - OBJECTIVE):.4f}"
        enough = f"{writes(burn.short)} >= {MINIMUM_WRITES}"
        return (
            f"({ratio(burn.short)} > {limit}\n"
            f"and on (stack, fleet) {ratio(burn.long)} > {limit}\n"
            f"and on (stack, fleet) {enough})\n"
            f"or ({ratio(burn.short)}\n"
            f"and on (stack, fleet) {writes(burn.short, FAILED)} >= {burn.failed}\n"
            f"unless on (stack, fleet) {enough})"
        )

    return expression


DIAGNOSIS = (
    Step("Check whether StorageDatabaseDown fires. It is then the cause."),
    Step("`log/storage-<fleet>-<n>.log` in the stack's home has the error of each failed write."),
    Step(
        "If only one fleet fails, check its version: compare `observatory status` with the last deployment in "
        "`observatory report`."
    ),
    Step(
        "If both fleets fail, check the database for a full disk, a missing privilege or a lock: `log/` in "
        "the stack's home."
    ),
)
REMEDY = (
    Step(
        "During a deployment the alert starts a rollback. Afterwards: `observatory rollback --method blue-green "
        "--emergency`."
    ),
    Step(
        "If a privilege is missing, `observatory deploy database --verify-only` names it, and this grants it:",
        ("observatory up",),
    ),
)

FAST_BURN = Alert(
    name="StorageErrorBudgetFastBurn",
    expression=_burns(FAST),
    pending="30s",
    keep_firing="15s",
    severity="critical",
    component="service",
    category="application-performance",
    rollback=True,
    summary="A fleet fails so many writes that a month's error budget lasts two days",
    description="Fleet {{ $labels.fleet }} failed {{ $value | humanizePercentage }} of its writes in 5 minutes.",
    runbook=Runbook(
        meaning=(
            "Over 1 hour and over the last 5 minutes, writes failed at least 14.4 times as often as the objective of "
            "99.9 % "
            "allows; "
            "or at least 10 of fewer than 100 writes failed in 5 minutes."
        ),
        impact="Clients receive errors and must send their traces again. Traces that are not sent again are lost.",
        diagnosis=DIAGNOSIS,
        remedy=REMEDY,
        escalation=escalation.SERVICE,
    ),
    fault="Revoke the service's privilege to insert.",
    scenarios=(
        Scenario(
            name="5 % of the writes fail",
            interval=MINUTE,
            series={BLUE.format("success"): "0+1140x30", BLUE.format("error"): "0+60x30"},
            quiet=("1m",),
            fires=(
                Firing(
                    at="10m",
                    labels={"fleet": "blue"},
                    description="Fleet blue failed 5% of its writes in 5 minutes.",
                ),
            ),
        ),
        Scenario(
            name="1 % of the writes of one fleet fail",
            interval=MINUTE,
            series={
                BLUE.format("success"): "0+1188x75",
                BLUE.format("error"): "0+12x75",
                BLUE.format("success").replace("blue", "green"): "0+1200x75",
                BLUE.format("error").replace("blue", "green"): "0x75",
            },
            quiet=("10m", "70m"),
        ),
        Scenario(
            name="errors for five minutes in an hour without errors",
            interval=MINUTE,
            series={BLUE.format("success"): "0+1200x75", BLUE.format("error"): "0x60 36 72 108 144 180 180x10"},
            quiet=("62m", "65m", "67m"),
        ),
        Scenario(
            name="errors have ended",
            interval=MINUTE,
            series={BLUE.format("success"): "0+600x10 7200+1200x20", BLUE.format("error"): "0+600x10 6000x20"},
            quiet=("17m",),
        ),
        Scenario(
            name="three of five writes fail, too few to be significant",
            interval=MINUTE,
            series={BLUE.format("success"): "0 0 1 1 1 2 2 2", BLUE.format("error"): "0 1 2 3 3 3 3 3"},
            quiet=("2m", "4m", "6m"),
        ),
        Scenario(
            name="every write fails under low traffic",
            interval=MINUTE,
            series={BLUE.format("success"): "0x12", BLUE.format("error"): "0+5x12"},
            quiet=("1m",),
            fires=(
                Firing(
                    at="6m",
                    labels={"fleet": "blue"},
                    description="Fleet blue failed 100% of its writes in 5 minutes.",
                ),
            ),
        ),
    ),
)

SLOW_BURN = Alert(
    name="StorageErrorBudgetSlowBurn",
    expression=_burns(SLOW),
    pending="2m",
    severity="warning",
    component="service",
    category="application-performance",
    summary="A fleet fails so many writes that a month's error budget lasts five days",
    description="Fleet {{ $labels.fleet }} failed {{ $value | humanizePercentage }} of its writes in 30 minutes.",
    runbook=Runbook(
        meaning=(
            "Over 6 hours and over the last 30 minutes, writes failed at least 6 times as often as the objective of "
            "99.9 % "
            "allows; "
            "or at least 30 of fewer than 100 writes failed in 30 minutes."
        ),
        impact="Some clients receive errors and must send their traces again.",
        diagnosis=DIAGNOSIS,
        remedy=REMEDY[1:],
        escalation=escalation.SERVICE,
    ),
    fault="Let 1 % of the writes fail.",
    scenarios=(
        Scenario(
            name="1 % of the writes fail for an hour",
            interval=MINUTE,
            series={BLUE.format("success"): "0+1188x60", BLUE.format("error"): "0+12x60"},
            quiet=("1m",),
            fires=(
                Firing(
                    at="50m",
                    labels={"fleet": "blue"},
                    description="Fleet blue failed 1% of its writes in 30 minutes.",
                ),
            ),
        ),
        Scenario(
            name="0.2 % of the writes fail",
            interval=MINUTE,
            series={BLUE.format("success"): "0+998x60", BLUE.format("error"): "0+2x60"},
            quiet=("50m",),
        ),
        Scenario(
            name="errors for two minutes in two hours without errors",
            interval=MINUTE,
            series={BLUE.format("success"): "0+1200x130", BLUE.format("error"): "0x120 240 480 480x8"},
            quiet=("123m", "126m", "129m"),
        ),
    ),
)

APPLICATION_PERFORMANCE = (FAST_BURN, SLOW_BURN)
