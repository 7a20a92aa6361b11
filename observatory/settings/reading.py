"""Reads a stack's settings from its file or from the running program, and reports errors in them.

The only reader of `Pulumi.<stack>.yaml` and of `pulumi.Config`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from observatory.errors import WRONG_USAGE, ObservatoryError
from observatory.settings.aws import AwsSettings
from observatory.settings.local import LocalSettings

PROJECT = "llm-observatory"
# Keys that the Pulumi CLI writes to a stack's file, and the namespaces of other packages' settings in it.
FILE_KEYS = ("config", "encryptionsalt", "encryptedkey", "secretsprovider", "environment")
FOREIGN_NAMESPACES = ("pulumi", "aws", "kubernetes", "postgresql")

StackSettings: TypeAlias = LocalSettings | AwsSettings
# The discriminator `platform` selects the model here, so that only one of the two is built: that takes 20 ms.
_MODELS: Mapping[str, type[LocalSettings] | type[AwsSettings]] = {"local": LocalSettings, "aws": AwsSettings}


class SettingsError(ObservatoryError):
    """Stack settings are not valid; the message has file, line, key and expectation of each error."""

    exit_code = WRONG_USAGE


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A stack's configuration file: its path, its project settings by key, and the line each dotted key stands on."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `Pulumi.<stack>.yaml`; a missing file has no values.

        Raises:
            SettingsError: the file is not readable, not of the form that `pulumi config` writes, or has a key twice.
        """
        if not path.exists():
            return cls(path=path, values={}, lines={})
        try:
            text = path.read_text(encoding="utf-8")
            document = yaml.safe_load(text) or {}
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path.name}: cannot be read: {error}") from error
        _check_form(path.name, document, root)
        values = {str(key): value for key, value in (document.get("config") or {}).items()}
        own = {_own_key(key): value for key, value in values.items() if _own_key(key)}
        return cls(path=path, values=own, lines=dict(_key_lines(root)))


def _check_form(file: str, document: Any, root: yaml.Node | None) -> None:
    """Refuse errors that the Pulumi CLI ignores silently."""
    for place, key in _duplicates(root):
        raise SettingsError(f"{file}:{place}: {key}: duplicate key; remove one of the two")
    if not isinstance(document, dict) or not isinstance(document.get("config") or {}, dict):
        raise SettingsError(f"{file}: expected a mapping with the key 'config', as `pulumi config` writes it")
    for key in document:
        if key not in FILE_KEYS:
            raise SettingsError(f"{file}: {key}: unknown key; expected one of {', '.join(FILE_KEYS)}")
    for key in document.get("config") or {}:
        namespace = str(key).rpartition(":")[0] or PROJECT
        if namespace not in (PROJECT, *FOREIGN_NAMESPACES):
            raise SettingsError(f"{file}: {key}: unknown namespace {namespace!r}; this project's is {PROJECT!r}")


def _duplicates(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield (line, key) of every duplicate key of a mapping; YAML would silently keep the last one."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            yield key.start_mark.line + 1, str(key.value)
        seen.add(str(key.value))
        yield from _duplicates(value)


def _own_key(key: str) -> str:
    """Return this project's setting that a key names, or nothing; as in the CLI, a bare key is the project's."""
    namespace, _, name = key.rpartition(":")
    return name if namespace in ("", PROJECT) else ""


def _key_lines(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield (dotted key below `config`, line counted from 1)."""
    if not isinstance(root, yaml.MappingNode):
        return
    for key, value in root.value:
        if key.value == "config":
            yield from _nested_lines(value, "")


def _nested_lines(node: yaml.Node, above: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted = f"{above}{key.value}" if above else _own_key(str(key.value))
        yield dotted, key.start_mark.line + 1
        yield from _nested_lines(value, f"{dotted}.")


def load_file(path: Path) -> StackSettings:
    """Return the settings of a stack's configuration file.

    Raises:
        SettingsError: an unknown, mistyped or contradictory setting; names file, line, key and what was expected.
    """
    file = ConfigFile.read(path)
    return _validate(file.values, file.path.name, file.lines)


def load_program() -> StackSettings:
    """Return the settings of the running Pulumi program, with either engine.

    Raises:
        SettingsError: as `load_file`, without lines, since the engine passes values only.
    """
    import pulumi  # noqa: PLC0415 - the command reads settings without the SDK
    from pulumi.runtime.config import CONFIG  # noqa: PLC0415

    values = {_own_key(key): _decode(value) for key, value in CONFIG.get().items() if _own_key(key)}
    return _validate(values, f"Pulumi.{pulumi.get_stack()}.yaml", {})


def _decode(value: Any) -> Any:
    """Return a value as the engine passes it: structured values are JSON text, others plain text."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _validate(values: Mapping[str, Any], file: str, lines: Mapping[str, int]) -> StackSettings:
    platform = values.get("platform", "local")
    if not isinstance(platform, str) or platform not in _MODELS:
        raise SettingsError(
            f"{_place('platform', file, lines)}: {PROJECT}:platform: expected one of {', '.join(_MODELS)} "
            f"(given: {platform!r})"
        )
    try:
        # As JSON: in strict mode pydantic then accepts a mapping as a group, and refuses `true` as a number.
        return _MODELS[platform].model_validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        problems = [_describe(platform, problem, file, lines) for problem in error.errors()]
    raise SettingsError("\n".join(problems))


_Location: TypeAlias = tuple[int | str, ...]


def _describe(platform: str, problem: Any, file: str, lines: Mapping[str, int]) -> str:
    location: _Location = problem["loc"]
    key = ".".join(str(part) for part in location)
    place = _place(key, file, lines)
    name = f"{PROJECT}:{key}" if key else f"{PROJECT}:*"
    if problem["type"] == "extra_forbidden":
        return f"{place}: {name}: {_unknown(platform, location)}"
    if problem["type"] == "missing":
        return f"{place}: {name}: is required and not set"
    expected = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("model_type", "model_attributes_type"):
        expected = "Expected a group of settings"
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
    return f"{place}: {name}: {expected[0].lower()}{expected[1:]}{given}"


def _place(key: str, file: str, lines: Mapping[str, int]) -> str:
    """Return file and line of a key, or of the nearest group above it that the file has."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{file}:{lines[key]}" if key else file


def _unknown(platform: str, location: _Location) -> str:
    """Return why a setting is refused: it belongs to another platform, or its name is unknown; with close names."""
    name = str(location[-1])
    names = _names(_MODELS[platform], location)
    for other, model in _MODELS.items():
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
