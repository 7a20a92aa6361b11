"""A function that every dynamic provider of this package uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_provider(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return properties as outputs; the SDK adds its own again."""
    return {key: value for key, value in props.items() if key != "__provider"}
