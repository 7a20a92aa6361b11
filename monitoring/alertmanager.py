"""Who is told, when, and what is held back: Alertmanager's routes and inhibitions, the same on every stack.

Where a receiver leads is the caller's: PagerDuty, Slack and email in production, the local receiver's webhooks on
`local` (`webhook_receivers`). Silences are no part of it: they expire, so a deployment sets and ends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import yaml

Receiver = Literal["watchdog", "pagerduty", "slack", "email", "ticket", "rollback"]
ROLLBACK: Receiver = "rollback"  # a program that may roll a promoted version back; a stack can be without
RECEIVERS: tuple[Receiver, ...] = tuple(name for name in get_args(Receiver) if name != ROLLBACK)
NOBODY = "nobody"  # InfoInhibitor fires only to inhibit

HEARTBEAT = {"group_wait": "0s", "group_interval": "1m", "repeat_interval": "1m"}
PAGE = {"group_wait": "10s", "group_interval": "15s", "repeat_interval": "1h"}
WARN = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}
ACT = {"group_wait": "0s", "group_interval": "15s", "repeat_interval": "5m"}
INFORM = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "24h"}

TIME_INTERVALS = [{"name": "weekends", "time_intervals": [{"weekdays": ["saturday", "sunday"]}]}]


def alertmanager_file(receivers: Mapping[Receiver, Mapping[str, Any]]) -> str:
    """Return Alertmanager's configuration as YAML.

    Args:
        receivers: what each receiver does, in Alertmanager's own keys, such as `{"webhook_configs": [...]}`; `rollback`
            may be missing.

    Raises:
        ValueError: a receiver is missing, so that its alerts would reach nobody.
    """
    if missing := set(RECEIVERS) - receivers.keys():
        raise ValueError(f"no configuration for receivers {sorted(missing)}: their alerts would reach nobody")
    config = {
        "route": routes(rollback=ROLLBACK in receivers),
        "inhibit_rules": inhibitions(),
        "time_intervals": TIME_INTERVALS,
        "receivers": [{"name": NOBODY}, *named(receivers)],
    }
    return yaml.safe_dump(config, sort_keys=False, width=120)


def webhook_receivers(url: str) -> dict[Receiver, dict[str, Any]]:
    """Return receivers that post to `<url>/receivers/<name>`, each to its own; a heartbeat is never resolved."""
    return {
        name: {"webhook_configs": [{"url": f"{url}/receivers/{name}", "send_resolved": name != "watchdog"}]}
        for name in RECEIVERS
    }


def named(receivers: Mapping[Receiver, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each receiver does, with its name."""
    return [{"name": name, **receivers[name]} for name in (*RECEIVERS, ROLLBACK) if name in receivers]


def routes(*, rollback: bool) -> dict[str, Any]:
    """Return the tree; what no route takes is at least seen in Slack.

    With `rollback`, alerts that would roll a moving fleet back reach that receiver too, which knows what moved last.
    """
    act = [{**_route(ROLLBACK, 'rollback="true"', ACT), "continue": True}] if rollback else []
    return {
        "receiver": "slack",
        "group_by": ["stack", "alertname", "fleet"],
        **WARN,
        "routes": [
            _route("watchdog", 'alertname="Watchdog"', HEARTBEAT),
            _route(NOBODY, 'alertname="InfoInhibitor"', INFORM),
            *act,
            {**_route("pagerduty", 'severity="critical"', PAGE), "continue": True},
            _route("slack", 'severity="critical"', PAGE),
            {**_route("slack", 'severity="warning"', WARN), "continue": True},
            _route("email", 'severity="warning"', WARN),
            {**_route("ticket", 'severity="info"', INFORM), "mute_time_intervals": ["weekends"]},
        ],
    }


def _route(receiver: str, matcher: str, timing: Mapping[str, str]) -> dict[str, Any]:
    return {"receiver": receiver, "matchers": [matcher], **timing}


def inhibitions() -> list[dict[str, Any]]:
    """Return what a known cause holds back; `equal` keeps one stack's cause from hiding another's alerts.

    Critical alerts are never held back: they page and roll back by themselves.
    """
    return [
        _inhibition('alertname="StorageDatabaseDown"', ['component="service"', 'severity=~"warning|info"'], ["stack"]),
        _inhibition('alertname="StorageServiceDown"', ['alertname="StorageInstanceDown"'], ["stack", "fleet"]),
        _inhibition('alertname="InfoInhibitor"', ['severity="info"'], ["stack"]),
    ]


def _inhibition(source: str, targets: list[str], equal: list[str]) -> dict[str, Any]:
    return {"source_matchers": [source], "target_matchers": targets, "equal": equal}
