"""A silence that can cover nothing is named, with what exists."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.platforms.silence_reach import unreached

LIVE = {"job": {"node", "service"}, "instance": {"blue-1", "green-1"}}


def problems(**given: Any) -> list[str]:
    terms: dict[str, Any] = {"fleet": None, "alert": None, "matchers": (), **given}
    return list(unreached(**terms, values=lambda label: LIVE.get(label, ())))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"matchers": ('jbo="node"',)}, "no alert has the label 'jbo'; did you mean job?"),
        ({"matchers": ('job="nod"',)}, 'nothing has job="nod" now; did you mean node?'),
        ({"matchers": ('job=~"x.+"',)}, 'nothing has job=~"x.+" now; there are node, service'),
        ({"matchers": ('severity="warnin"',)}, 'no alert has severity="warnin"; did you mean warning?'),
        ({"alert": "StorageDiskWarning", "matchers": ('fleet="green"',)}, "StorageDiskWarning has alertname, category"),
        ({"matchers": ('alertname=~"StorageDisk.+"', 'severity="info"')}, "the values of all labels"),
        ({"matchers": ('instance="blue-1"', 'instance="green-1"')}, 'a matcher of several values is instance=~"A|B"'),
        ({"matchers": ('alertname="StorageDatabaseDow"',)}, "did you mean StorageDatabaseDown?"),
    ],
)
def test_a_silence_that_covers_nothing_is_named(given: Any, problem: str) -> None:
    [found] = problems(**given)
    assert problem in found


@pytest.mark.parametrize(
    "given",
    [
        {"fleet": "green"},
        {"fleet": "green", "alert": "StorageInstanceDown"},
        {"alert": "StorageDiskWarning"},
        {"alert": "StorageWarningUnattended"},
        {"matchers": ('instance=~"blue.*"',)},
        {"matchers": ('job="node"', 'x!="y"', 'z=~".*"')},
        {"matchers": ('repository="1"',)},  # without series, for example while Prometheus is down
    ],
)
def test_a_silence_that_may_cover_an_alert_is_not_named(given: Any) -> None:
    assert problems(**given) == []
