"""Turns an error of a stack's settings into a line for a person: file, line, key and what was expected.

A value is shown only where it cannot be a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel

from observatory.settings.aws import AwsSettings
from observatory.settings.expectations import expectation
from observatory.settings.local import LocalSettings

PROJECT = "llm-observatory"
StackSettings: TypeAlias = LocalSettings | AwsSettings
# The discriminator `platform` selects the model here, so that only one of the two is built: that takes 20 ms.
MODELS: Mapping[str, type[LocalSettings] | type[AwsSettings]] = {"local": LocalSettings, "aws": AwsSettings}
# Names of settings in whose place a secret is given by mistake.
_CONFIDENTIAL = re.compile(r"password|secret|token|key|webhook|source|url|file|username|sample|receivers|notifications")
_OF_NAME = "[key]"  # pydantic's last part of the location of an error that is about an entry's name
_WORD = re.compile(r"[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*")

_Location: TypeAlias = tuple[int | str, ...]


def describe(platform: str, problem: Any, file: str, lines: Mapping[str, int], secret: Collection[str]) -> str:
    """Return the line for one error of pydantic; `secret` has the keys of values that were stored as secrets."""
    location: _Location = problem["loc"]
    if of_name := location[-1:] == (_OF_NAME,):
        location = location[:-1]
    key = ".".join(str(part) for part in location)
    expected = expectation(problem)
    where = place(_mentioned(expected, key, lines), file, lines)
    name = f"{PROJECT}:{key}: " if key else ""
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name}{_unknown(platform, location)}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        expected = "expected a group of settings"
    if of_name:
        return f"{where}: {name}the name {location[-1]!r} is not valid: {expected}"
    given = (
        "" if problem["type"] in ("value_error", "missing") else f" (given: {_shown(problem['input'], key, secret)})"
    )
    return f"{where}: {name}{expected[0].lower()}{expected[1:]}{given}"


def _mentioned(text: str, key: str, lines: Mapping[str, int]) -> str:
    """Return the setting that an error of the whole group `key` is about: the first that the text mentions."""
    names = (f"{key}.{word}" if key else word for word in _WORD.findall(text))
    return next((name for name in names if name in lines), key)


def _shown(value: Any, key: str, secret: Collection[str]) -> str:
    """Return a value for an error message, unless it is a secret or may be one."""
    if any(f"{key}.".startswith(f"{each}.") or f"{each}.".startswith(f"{key}.") for each in secret):
        return "[secret]"
    if isinstance(value, int | float) or value is None:
        return repr(value)
    return "a value that is not shown here" if _CONFIDENTIAL.search(key) else repr(value)


def place(key: str, file: str, lines: Mapping[str, int]) -> str:
    """Return file and line of a key, or of the nearest group above it that the file has."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{file}:{lines[key]}" if key in lines else file


def _unknown(platform: str, location: _Location) -> str:
    """Return why a setting is refused: it belongs to another platform, or its name is unknown; with close names."""
    name = str(location[-1])
    names = _names(MODELS[platform], location)
    for other, model in MODELS.items():
        if other != platform and name in _names(model, location):
            return f"a setting of platform {other!r}; this stack has platform {platform!r}"
    if not names:
        return "unknown setting"
    close = difflib.get_close_matches(name, names, n=1)
    return "unknown setting" + (f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(names)}")


def _names(model: type[BaseModel], location: _Location) -> list[str]:
    """Return the names of the settings in the group of a location."""
    group = model
    for part in location[:-1]:
        field = group.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        group = field.annotation
    return sorted(group.model_fields)
