"""Functions that the dynamic providers of this package use."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observatory.runtime import Drift

DRIFT = "drift"


def without_provider(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return properties as outputs; the SDK adds its own again."""
    return {key: value for key, value in props.items() if key != "__provider"}


def with_drift(props: Mapping[str, Any], drift: Sequence[Drift]) -> dict[str, Any]:
    """Return properties as outputs, with what differs on the disk as `drift`; without a difference there is none."""
    outs = {key: value for key, value in without_provider(props).items() if key != DRIFT}
    return {**outs, DRIFT: {each.path: each.problem for each in drift}} if drift else outs


def has_drifted(name: str, olds: Mapping[str, Any], drift: Sequence[Drift]) -> bool:
    """Return whether files differ now or did at the last refresh; print what differs, which the engine forwards."""
    for each in drift:
        sys.stderr.write(f"{name}: {each}\n")
    return bool(drift) or DRIFT in olds
