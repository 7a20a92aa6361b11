"""Matchers of alerts, in Alertmanager's spelling: `name="value"`, with `=`, `!=`, `=~` or `!~`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast

Operator = Literal["=", "!=", "=~", "!~"]
_MATCHER = re.compile(
    r'\s*(?P<name>[a-zA-Z_]\w*)\s*(?P<operator>=~|!~|!=|=)\s*"(?P<value>(?:[^"\\]|\\.)*)"\s*', re.ASCII
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n"}


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """One matcher. A label that an alert lacks has the value `""`; a regular expression matches a whole value."""

    name: str
    operator: Operator = "="
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the matcher of a text, e.g. `severity=~"warning|info"`.

        Raises:
            ValueError: the text is not a matcher, or its regular expression is not valid.
        """
        found = _MATCHER.fullmatch(text)
        if found is None:
            raise ValueError(
                f'matcher {text!r}: expected a name, an operator and a quoted value, e.g. severity="critical"'
            )
        value = _ESCAPED.sub(lambda escape: _ESCAPES.get(escape[1], escape[1]), found[3])
        if "~" in found[2]:
            _compiled(value)
        return cls(name=found[1], operator=cast("Operator", found[2]), value=value)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether an alert with these labels matches."""
        value = labels.get(self.name, "")
        equal = bool(_compiled(self.value).fullmatch(value)) if "~" in self.operator else value == self.value
        return equal is not self.operator.startswith("!")

    def __str__(self) -> str:
        value = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.name}{self.operator}"{value}"'


def match_all(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Return whether an alert with these labels matches every matcher."""
    return all(matcher.matches(labels) for matcher in matchers)


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from error
