"""Alertmanager's routes and inhibitions, the same on every stack.

The caller configures the receivers: PagerDuty, Slack and email, or webhooks of the local receiver on `local`
(`webhook_receivers`). Silences are not part of the configuration: they expire, and a deployment sets and ends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from monitoring.alerts.delivery_of_alerts import WARNING_UNATTENDED
from monitoring.inhibitions import inhibitions
from monitoring.yaml_text import yaml_text

Receiver = Literal["watchdog", "pagerduty", "slack", "email", "ticket", "rollback"]
ROLLBACK: Receiver = "rollback"  # rolls back a promoted version; optional
RECEIVERS: tuple[Receiver, ...] = tuple(name for name in get_args(Receiver) if name != ROLLBACK)
NO_RECEIVER = "nobody"  # for InfoInhibitor, which only inhibits other alerts

# `escalated`: PagerDuty adds alerts of one group to its open incident, and pages again for none that is acknowledged.
GROUP_BY = ("stack", "alertname", "fleet", "escalated")
# Of the heartbeat. A receiver on the same machine gets it more often, and notices its end sooner.
HEARTBEAT, LOCAL_HEARTBEAT = "1m", "10s"
# A page is sent within `for` + 15 s: up to 5 s until the next evaluation, this wait, and the sending.
PAGE_TIMING = {"group_wait": "5s", "group_interval": "15s", "repeat_interval": "1h"}
WARNING_TIMING = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}
ROLLBACK_TIMING = {"group_wait": "0s", "group_interval": "15s", "repeat_interval": "5m"}
INFO_TIMING = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "24h"}

WEEKENDS, MAINTENANCE = "weekends", "maintenance"
WEEKEND_DAYS = ("saturday", "sunday")
WEEKDAYS = {
    "mon": "monday",
    "tue": "tuesday",
    "wed": "wednesday",
    "thu": "thursday",
    "fri": "friday",
    "sat": "saturday",
    "sun": "sunday",
}
MIDNIGHT = ("00:00", "24:00")


@dataclass(frozen=True, kw_only=True)
class MaintenanceWindow:
    """Hours on some days of the week in which only critical alerts and the heartbeat are delivered.

    A window that closes before it opens, or when it opens, ends on the next day.

    Attributes:
        days: of the opening, e.g. `("sat", "sun")`.
        opens: time of day, e.g. `22:00`.
        closes: time of day.
        timezone: of both.
    """

    days: Sequence[str]
    opens: str
    closes: str
    timezone: str = "UTC"

    def intervals(self) -> Iterator[dict[str, Any]]:
        """Yield the time intervals in Alertmanager's keys: none may cross midnight."""
        over_night = self.closes <= self.opens
        yield self._interval(self.days, self.opens, MIDNIGHT[1] if over_night else self.closes)
        if over_night and self.closes != MIDNIGHT[0]:
            names = list(WEEKDAYS)
            following = [names[(names.index(day) + 1) % len(names)] for day in self.days]
            yield self._interval(following, MIDNIGHT[0], self.closes)

    def _interval(self, days: Sequence[str], start: str, end: str) -> dict[str, Any]:
        return {
            "weekdays": [WEEKDAYS[day] for day in days],
            "times": [{"start_time": start, "end_time": end}],
            **({"location": self.timezone} if self.timezone != "UTC" else {}),
        }


def alertmanager_file(
    receivers: Mapping[Receiver, Mapping[str, Any]],
    *,
    maintenance: Sequence[MaintenanceWindow] = (),
    templates: Sequence[str] = (),
) -> str:
    """Return Alertmanager's configuration as YAML.

    Args:
        receivers: configuration of each receiver in Alertmanager's keys, e.g. `{"webhook_configs": [...]}`; `rollback`
            is optional.
        maintenance: hours in which only critical alerts are delivered.
        templates: paths of the files of templates.

    Raises:
        ValueError: a receiver has no configuration, so its alerts would not be delivered; or as `inhibitions`.
    """
    check_receivers(receivers)
    config = {
        **({"templates": list(templates)} if templates else {}),
        "route": routes(rollback=ROLLBACK in receivers, maintenance=bool(maintenance), heartbeat=LOCAL_HEARTBEAT),
        "inhibit_rules": inhibitions(),
        "time_intervals": time_intervals(maintenance),
        "receivers": [{"name": NO_RECEIVER}, *named(receivers)],
    }
    return yaml_text(config)


def check_receivers(receivers: Mapping[Receiver, Mapping[str, Any]]) -> None:
    """Check that each receiver of the routes has a configuration.

    Raises:
        ValueError: a receiver has none, so its alerts would not be delivered.
    """
    if missing := sorted(name for name in RECEIVERS if not receivers.get(name)):
        raise ValueError(f"receivers {missing} have no configuration, so their alerts would be lost: configure them")


def time_intervals(maintenance: Sequence[MaintenanceWindow]) -> list[dict[str, Any]]:
    """Return the time intervals that routes name."""
    weekends = {"name": WEEKENDS, "time_intervals": [{"weekdays": list(WEEKEND_DAYS)}]}
    windows = [interval for window in maintenance for interval in window.intervals()]
    return [weekends, *([{"name": MAINTENANCE, "time_intervals": windows}] if windows else [])]


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


def routes(*, rollback: bool, maintenance: bool = False, heartbeat: str = HEARTBEAT) -> dict[str, Any]:
    """Return the routing tree; alerts without a route go to Slack.

    With `rollback`, alerts that can roll back a deployment also go to that receiver, which finds the last deployment.
    With `maintenance`, that time interval mutes warnings, their escalation and informational alerts. `heartbeat` is the
    interval of Watchdog's notifications.
    """
    rollbacks = [{**_route(ROLLBACK, 'rollback="true"', ROLLBACK_TIMING), "continue": True}] if rollback else []
    muted = [MAINTENANCE] if maintenance else []
    watchdog = {"group_wait": "0s", "group_interval": heartbeat, "repeat_interval": heartbeat}
    escalation = f'alertname="{WARNING_UNATTENDED.name}"'
    return {
        "receiver": "slack",
        "group_by": list(GROUP_BY),
        **WARNING_TIMING,
        "routes": [
            _route("watchdog", 'alertname="Watchdog"', watchdog),
            _route(NO_RECEIVER, 'alertname="InfoInhibitor"', INFO_TIMING),
            *rollbacks,
            *(_to_both("pagerduty", "slack", escalation, PAGE_TIMING, muted) if muted else ()),
            *_to_both("pagerduty", "slack", 'severity="critical"', PAGE_TIMING),
            *_to_both("slack", "email", 'severity="warning"', WARNING_TIMING, muted),
            _route("ticket", 'severity="info"', INFO_TIMING, [WEEKENDS, *muted]),
        ],
    }


def _to_both(
    first: str, second: str, matcher: str, timing: Mapping[str, str], muted: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the routes of alerts to two receivers; each retries on its own, so that neither waits for the other."""
    return [{**_route(first, matcher, timing, muted), "continue": True}, _route(second, matcher, timing, muted)]


def _route(receiver: str, matcher: str, timing: Mapping[str, str], muted: Sequence[str] = ()) -> dict[str, Any]:
    intervals = {"mute_time_intervals": list(muted)} if muted else {}
    return {"receiver": receiver, "matchers": [matcher], **timing, **intervals}
