"""One round: a fault, the page, the commands of the runbook, and the end of the alert; each with its seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from proofs.alerts.monitored import INTERVAL_S, REGISTERED, SCOPE, STEP_S, Monitored, Received
from proofs.alerts.scaled import seconds

RECEIVERS = {"critical": "pagerduty", "warning": "slack", "info": "ticket"}
PAGE_S, RESOLVED_S = 15.0, 30.0  # of a critical alert, beyond `for` and `keep_firing_for`
PATIENCE_S = 2400.0  # for a page and for its end, beyond `for` and `keep_firing_for`


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What makes an alert fire on a running stack.

    Attributes:
        alert: its name.
        what: the fault, in the words of a report.
        inject: makes the fault; the end of the block restores what the runbook's commands do not.
        labels: of the expected alert, beyond those of its rule.
        remedy_of: the alert whose runbook has the commands, if it is another one.
        ended_by_hand: whether an engineer ends the fault before the commands, as the runbook has it: a client stops.
    """

    alert: str
    what: str
    inject: Callable[[Monitored], AbstractContextManager[None]]
    labels: Mapping[str, str] = field(default_factory=dict)
    remedy_of: str | None = None
    ended_by_hand: bool = False

    @property
    def pending_s(self) -> float:
        """How long the expression is true before the alert fires, as the registry has it."""
        return seconds(REGISTERED[self.alert].pending)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The seconds of one round.

    Attributes:
        alert: its name.
        page_s: from the first second at which the expression was true to the page.
        remedy_s: how long the commands took.
        resolved_s: from the start of the commands to the message that the alert is resolved.
        ended_s: from the first second at which the expression was false to that message.
        commands: of the runbook, as they were run.
        late: what took longer than promised.
    """

    alert: str
    page_s: float
    remedy_s: float
    resolved_s: float
    ended_s: float
    commands: Sequence[str]
    late: Sequence[str] = ()


def measure(stack: Monitored, fault: Fault, durations: Mapping[str, str]) -> Measured:
    """Prove one alert; `durations` has the `for` and `keep_firing_for` of the stack's rule.

    Raises:
        TimeoutError: the alert did not come, or did not end.
        RuntimeError: a command of the runbook failed.
    """
    pending, kept = seconds(durations["pending"]), seconds(durations["keep_firing"])
    stack.wait_for(lambda: not _active(stack, fault.alert), f"{fault.alert} to be quiet", timeout_s=PATIENCE_S)
    begun = time.time()
    with ExitStack() as injected:
        injected.enter_context(fault.inject(stack))
        page = _await(stack, fault, "firing", since=begun, timeout_s=PATIENCE_S + pending)
        commands, remedied = commands_for(fault, page), time.time()
        if fault.ended_by_hand:
            injected.close()
        for command in commands:
            stack.shell(command)
        remedy_s = time.time() - remedied
        end = _await(stack, fault, "resolved", since=page.at, timeout_s=PATIENCE_S + kept)
    began, ended = true_between(stack.times_true(fault.alert, fault.labels, begun), page.at, end.at)
    page_s, ended_s = page.at - began, end.at - ended
    return Measured(
        alert=fault.alert,
        page_s=round(page_s, 1),
        remedy_s=round(remedy_s, 1),
        resolved_s=round(end.at - remedied, 1),
        ended_s=round(ended_s, 1),
        commands=commands,
        late=tuple(_late(fault.alert, page_s - pending, ended_s - kept)),
    )


def _active(stack: Monitored, alert: str) -> bool:
    selector = SCOPE.select("ALERTS", f'alertname="{alert}"')
    return bool(stack.query(selector)) or stack.is_true(alert)


def _await(stack: Monitored, fault: Fault, status: str, *, since: float, timeout_s: float) -> Received:
    """Wait for a notification and return it."""
    receiver, found = RECEIVERS[REGISTERED[fault.alert].severity], list[Received]()

    def arrived() -> bool:
        found[:] = [
            each
            for each in stack.received(fault.alert, since=since)
            if (each.receiver, each.status) == (receiver, status) and fault.labels.items() <= each.labels.items()
        ]
        return bool(found)

    stack.wait_for(arrived, f"{fault.alert}, {status}, at {receiver} after: {fault.what}", timeout_s=timeout_s)
    return found[0]


def commands_for(fault: Fault, page: Received) -> list[str]:
    """Return the commands of the runbook for this page."""
    steps = REGISTERED[fault.remedy_of or fault.alert].runbook.remedy
    return [command for step in steps for command in step.filled(page.labels)]


def true_between(times: Sequence[float], paged: float, resolved: float) -> tuple[float, float]:
    """Return when the expression became true for the page, and when it became false before the end of the alert.

    An expression that is false for less than two evaluations, as when a scrape fails, is not over.
    """
    before = [each for each in times if each <= paged]
    if not before:
        return paged, resolved
    began = before[-1]
    for earlier in reversed(before[:-1]):
        if began - earlier > 2 * INTERVAL_S:
            break
        began = earlier
    return began, max(each for each in times if each <= resolved) + STEP_S


def _late(alert: str, page_s: float, resolved_s: float) -> list[str]:
    """Return what a critical alert promises and did not do."""
    if REGISTERED[alert].severity != "critical":
        return []
    late = [f"the page came {page_s:.1f} s after `for`"] if page_s > PAGE_S else []
    return [*late, f"the end came {resolved_s:.1f} s after `keep_firing_for`"] if resolved_s > RESOLVED_S else late
