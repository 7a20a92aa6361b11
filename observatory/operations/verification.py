"""Verifying a stack after a change: checks with a verdict each.

Owns the order of the checks and the meaning of the verdicts; the checks are in `observatory.operations.stack_checks`. A
check that cannot be performed is `unknown`, never passed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from observatory.delivery.environment import HostsError, UnjudgedError
from observatory.operations.checks import Check, CheckFailedError
from observatory.operations.stack_checks import StackChecks
from observatory.progress import Reporter, silent, task
from observatory.settings import FleetName
from observatory.workspace import Workspace

Verdict = Literal["passed", "failed", "unknown"]
BASIC_SECONDS, COMPREHENSIVE_SECONDS = 120.0, 600.0


@dataclass(frozen=True, kw_only=True)
class StackCheck:
    """The result of one check, and how many seconds it took."""

    name: str
    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StackVerification:
    """The results of all checks of one stack, in their order."""

    stack: str
    checks: tuple[StackCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed; an unknown one did not."""
        return all(check.verdict == "passed" for check in self.checks)


def verify(
    workspace: Workspace,
    *,
    comprehensive: bool = False,
    target: FleetName | None = None,
    timeout_s: float | None = None,
    report: Reporter = silent,
) -> StackVerification:
    """Check every part of a stack.

    Args:
        workspace: the stack's.
        comprehensive: check both fleets, latency, alerts and the newest backup, too.
        target: the fleet to exercise; None is the active one.
        timeout_s: seconds after which no check starts; those left are unknown. By default 120, comprehensive 600.
        report: gets progress.

    Raises:
        OperationError: the stack is not up, or its platform is not supported.
    """
    deadline = time.monotonic() + (timeout_s or (COMPREHENSIVE_SECONDS if comprehensive else BASIC_SECONDS))
    done = []
    for name, check in _checks(workspace, comprehensive=comprehensive, target=target).items():
        if time.monotonic() > deadline:
            done.append(StackCheck(name=name, verdict="unknown", detail="not started: the time is over", seconds=0.0))
            continue
        with task(report, name):
            done.append(_run(name, check))
    return StackVerification(stack=workspace.stack, checks=tuple(done))


def list_checks(
    workspace: Workspace, *, comprehensive: bool = False, target: FleetName | None = None
) -> tuple[StackVerification, tuple[str, ...]]:
    """Check the connections to a stack only; return the results, and the names of the checks that `verify` would run.

    Raises:
        SettingsError: the stack's configuration is wrong.
        OperationError: the stack is not up, its platform is not supported, or its secrets cannot be read.
    """
    names = tuple(_checks(workspace, comprehensive=comprehensive, target=target))
    found = tuple(_run(name, check) for name, check in StackChecks.of(workspace).connections().items())
    return StackVerification(stack=workspace.stack, checks=found), names


def _checks(workspace: Workspace, *, comprehensive: bool, target: FleetName | None) -> dict[str, Check]:
    return StackChecks.of(workspace).all(comprehensive=comprehensive, target=target)


def _run(name: str, check: Check) -> StackCheck:
    import httpx  # noqa: PLC0415 - only where it is used

    from observatory.database import DatabaseError  # noqa: PLC0415 - with psycopg
    from observatory.runtime import RuntimeFault  # noqa: PLC0415

    started = time.monotonic()
    verdict: Verdict = "passed"
    try:
        detail = check()
    except UnjudgedError as error:
        verdict, detail = "unknown", str(error)
    except (CheckFailedError, HostsError) as error:
        verdict, detail = "failed", str(error)
    except (httpx.HTTPError, DatabaseError, RuntimeFault, OSError, ValueError, KeyError) as error:
        verdict, detail = "unknown", f"cannot be checked: {type(error).__name__}: {error}"
    return StackCheck(name=name, verdict=verdict, detail=detail, seconds=time.monotonic() - started)
