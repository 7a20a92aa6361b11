"""Matchers of a silence, as Alertmanager's API has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitoring.matchers import Operator

# By isEqual and isRegex.
_OPERATORS: Mapping[tuple[bool, bool], Operator] = {
    (True, False): "=",
    (True, True): "=~",
    (False, False): "!=",
    (False, True): "!~",
}


def operator_of(matcher: Mapping[str, Any]) -> Operator:
    """Return the operator of a matcher; older versions of Alertmanager have no `isEqual`."""
    return _OPERATORS[matcher.get("isEqual", True), matcher["isRegex"]]
