"""Alertmanager's routes and inhibitions, the same on every stack.

The caller configures the receivers: PagerDuty, Slack and email in production, webhooks of the local receiver on `local`
(`webhook_receivers`). Silences are not part of the configuration: they expire, and a deployment sets and ends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import yaml

Receiver = Literal["watchdog", "pagerduty", "slack", "email", "ticket", "rollback"]
ROLLBACK: Receiver = "rollback"  # rolls back a promoted version; optional
RECEIVERS: tuple[Receiver, ...] = tuple(name for name in get_args(Receiver) if name != ROLLBACK)
NO_RECEIVER = "nobody"  # for InfoInhibitor, which only inhibits other alerts

WATCHDOG_TIMING = {"group_wait": "0s", "group_interval": "1m", "repeat_interval": "1m"}
PAGE_TIMING = {"group_wait": "10s", "group_interval": "15s", "repeat_interval": "1h"}
WARNING_TIMING = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}
ROLLBACK_TIMING = {"group_wait": "0s", "group_interval": "15s", "repeat_interval": "5m"}
INFO_TIMING = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "24h"}

TIME_INTERVALS = [{"name": "weekends", "time_intervals": [{"weekdays": ["saturday", "sunday"]}]}]


def alertmanager_file(receivers: Mapping[Receiver, Mapping[str, Any]]) -> str:
    """Return Alertmanager's configuration as YAML.

    Args:
        receivers: configuration of each receiver in Alertmanager's keys, e.g. `{"webhook_configs": [...]}`; `rollback`
            is optional.

    Raises:
        ValueError: a receiver has no configuration, so its alerts would not be delivered.
    """
    if missing := set(RECEIVERS) - receivers.keys():
        raise ValueError(
            f"receivers {sorted(missing)} have no configuration, so their alerts would be lost: configure them"
        )
    config = {
        "route": routes(rollback=ROLLBACK in receivers),
        "inhibit_rules": inhibitions(),
        "time_intervals": TIME_INTERVALS,
        "receivers": [{"name": NO_RECEIVER}, *named(receivers)],
    }
    return yaml.safe_dump(config, sort_keys=False, width=120)


def webhook_receivers(url: str, *, tls: Mapping[str, str]) -> dict[Receiver, dict[str, Any]]:
    """Return receivers that post to `<url>/receivers/<name>`; the watchdog sends no resolved notifications.

    `tls` is their `tls_config`.
    """
    http = {"tls_config": dict(tls)}
    return {
        name: {
            "webhook_configs": [
                {"url": f"{url}/receivers/{name}", "send_resolved": name != "watchdog", "http_config": http}
            ]
        }
        for name in RECEIVERS
    }


def named(receivers: Mapping[Receiver, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the configuration of each receiver with its name."""
    return [{"name": name, **receivers[name]} for name in (*RECEIVERS, ROLLBACK) if name in receivers]


def routes(*, rollback: bool) -> dict[str, Any]:
    """Return the routing tree; alerts without a route go to Slack.

    With `rollback`, alerts that can roll back a deployment also go to that receiver, which finds the last deployment.
    """
    rollbacks = [{**_route(ROLLBACK, 'rollback="true"', ROLLBACK_TIMING), "continue": True}] if rollback else []
    return {
        "receiver": "slack",
        "group_by": ["stack", "alertname", "fleet"],
        **WARNING_TIMING,
        "routes": [
            _route("watchdog", 'alertname="Watchdog"', WATCHDOG_TIMING),
            _route(NO_RECEIVER, 'alertname="InfoInhibitor"', INFO_TIMING),
            *rollbacks,
            {**_route("pagerduty", 'severity="critical"', PAGE_TIMING), "continue": True},
            _route("slack", 'severity="critical"', PAGE_TIMING),
            {**_route("slack", 'severity="warning"', WARNING_TIMING), "continue": True},
            _route("email", 'severity="warning"', WARNING_TIMING),
            {**_route("ticket", 'severity="info"', INFO_TIMING), "mute_time_intervals": ["weekends"]},
        ],
    }


def _route(receiver: str, matcher: str, timing: Mapping[str, str]) -> dict[str, Any]:
    return {"receiver": receiver, "matchers": [matcher], **timing}


def inhibitions() -> list[dict[str, Any]]:
    """Return the alerts that a known cause inhibits; `equal` limits each inhibition to one stack.

    Critical alerts are never inhibited: they page, and they start rollbacks.
    """
    return [
        _inhibition('alertname="StorageDatabaseDown"', ['component="service"', 'severity=~"warning|info"'], ["stack"]),
        _inhibition('alertname="StorageServiceDown"', ['alertname="StorageInstanceDown"'], ["stack", "fleet"]),
        _inhibition('alertname="InfoInhibitor"', ['severity="info"'], ["stack"]),
    ]


def _inhibition(source: str, targets: list[str], equal: list[str]) -> dict[str, Any]:
    return {"source_matchers": [source], "target_matchers": targets, "equal": equal}
