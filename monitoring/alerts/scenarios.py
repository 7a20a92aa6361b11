"""Scenarios that many alerts share: a value crosses a threshold and returns, or its series vanish."""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.model import Firing, Scenario

BRIDGE = "1m"  # how long the last value of a series is used when scrapes fail
BRIDGE_S = 60
BEFORE = 12  # samples before the value changes


def repeated(value: str, times: int) -> str:
    """Return a value that many times, in promtool's notation."""
    return f"{value}x{times - 1}"


def growing(*parts: tuple[float, int]) -> str:
    """Return a counter in promtool's notation: for each part its increase per sample, and the number of samples."""
    text, value = [], 0.0
    for increase, samples in parts:
        text.append(f"{value + increase:.12g}+{increase:.12g}x{samples - 1}")
        value += increase * samples
    return f"0 {' '.join(text)}"


def crossing(
    series: str,
    *,
    at: float,
    beyond: float,
    description: str,
    labels: Mapping[str, str] | None = None,
    pending: int = 0,
    keep: int = 0,
    interval: int = 5,
    others: Mapping[str, str] | None = None,
) -> Scenario:
    """Return a scenario in which a value is at the threshold, beyond it, and at it again.

    The alert is quiet until `pending` seconds after the change, fires then, and ends `keep` seconds after the return.
    """
    steps = pending // interval + BEFORE
    begins, ends = BEFORE * interval, (BEFORE + steps) * interval
    values = (
        f"{repeated(f'{at:.12g}', BEFORE)} {repeated(f'{beyond:.12g}', steps)} {repeated(f'{at:.12g}', steps + 40)}"
    )
    last = ends + keep - interval
    return Scenario(
        name="the value crosses the threshold and returns",
        interval=f"{interval}s",
        series={series: values, **(others or {})},
        quiet=(f"{begins + pending - interval}s", f"{ends + keep}s"),
        fires=tuple(
            Firing(at=f"{time}s", labels=labels or {}, description=description) for time in (begins + pending, last)
        ),
    )


def vanishing(
    series: str,
    *,
    beyond: float,
    description: str,
    labels: Mapping[str, str] | None = None,
    pending: int = 0,
    keep: int = 0,
    interval: int = 5,
    bridge: int = BRIDGE_S,
    others: Mapping[str, str] | None = None,
) -> Scenario:
    """Return a scenario in which a bad value is not scraped any more: the alert continues for as long as `bridge`."""
    steps = pending // interval + BEFORE
    last = (steps - 1) * interval
    return Scenario(
        name="scrapes fail while the alert fires",
        interval=f"{interval}s",
        series={series: f"{repeated(f'{beyond:.12g}', steps)} stale {repeated('_', steps + 60)}", **(others or {})},
        fires=(Firing(at=f"{last + bridge + keep - interval}s", labels=labels or {}, description=description),),
        quiet=(f"{last + bridge + keep + 2 * interval}s",),
    )


def gauge(
    series: str,
    *,
    at: float,
    beyond: float,
    description: str,
    labels: Mapping[str, str] | None = None,
    pending: int = 0,
    keep: int = 0,
    interval: int = 5,
    others: Mapping[str, str] | None = None,
) -> tuple[Scenario, Scenario]:
    """Return both scenarios of a value that is bridged over failed scrapes."""
    return (
        crossing(
            series,
            at=at,
            beyond=beyond,
            description=description,
            labels=labels,
            pending=pending,
            keep=keep,
            interval=interval,
            others=others,
        ),
        vanishing(
            series,
            beyond=beyond,
            description=description,
            labels=labels,
            pending=pending,
            keep=keep,
            interval=interval,
            others=others,
        ),
    )


def burst(
    series: str,
    *,
    description: str,
    labels: Mapping[str, str] | None = None,
    keep: int = 0,
    others: Mapping[str, str] | None = None,
) -> Scenario:
    """Return a scenario in which a counter increases by one: the alert fires for five minutes and `keep` seconds."""
    return Scenario(
        name="the counter increases once",
        interval="15s",
        series={series: "0x20 1x60", **(others or {})},
        quiet=("5m", f"{615 + keep}s"),
        fires=tuple(Firing(at=at, labels=labels or {}, description=description) for at in ("5m15s", f"{600 + keep}s")),
    )
