"""Reads a stack's settings from its file or from the running program, and reports errors in them.

The only reader of `Pulumi.<stack>.yaml` and of `pulumi.Config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from observatory.errors import WRONG_USAGE, ObservatoryError
from observatory.settings.problems import MODELS, PROJECT, StackSettings, describe, place

# Keys that the Pulumi CLI writes to a stack's file, and the namespaces of other packages' settings in it.
FILE_KEYS = ("config", "encryptionsalt", "encryptedkey", "secretsprovider", "environment")
TEXT_KEYS = ("encryptionsalt", "encryptedkey", "secretsprovider")
FOREIGN_NAMESPACES = ("pulumi", "aws", "kubernetes", "postgresql")

URL_FILES = ("webhook_file", "url_file")  # settings of files with an address
_URL = re.compile(r"https?://[^\s/?@]+([/?]\S*)?")

Decrypt: TypeAlias = Callable[[str], str]


class SettingsError(ObservatoryError):
    """Stack settings are not valid; the message has file, line, key and expectation of each error."""

    exit_code = WRONG_USAGE


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A stack's configuration file: its path, its project settings by key, and the line of each dotted key."""

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
        document, root = _parse(path)
        if "config" not in document:
            raise SettingsError(
                f"{path.name}:1: has no settings",
                remedy="Restore it from version control, or write `config: {}` into it for a stack of defaults.",
            )
        values = {str(key): value for key, value in (document.get("config") or {}).items()}
        own = {_own_key(key): value for key, value in values.items() if _own_key(key)}
        return cls(
            path=path, values=own, lines={"": _line(root, "config")} | dict(_nested_lines(_below_config(root), ""))
        )


def _parse(path: Path) -> tuple[dict[Any, Any], yaml.Node | None]:
    """Return the document of a file and its root node, which has the lines."""
    try:
        text = path.read_text(encoding="utf-8")
        document, root = _parse_text(text)
        _check_form(path.name, document, root)
    except OSError as error:
        raise SettingsError(f"{path.name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path.name}:{line}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path.name}{_syntax_error(error, text)}") from error
    except RecursionError as error:
        raise SettingsError(
            f"{path.name}: is nested too deeply, or an alias refers to a group that contains it; write the values out"
        ) from error
    return document, root


@lru_cache(maxsize=8)
def _parse_text(text: str) -> tuple[Any, yaml.Node | None]:
    """Parse a file once: one command reads it many times."""
    return yaml.safe_load(text) or {}, yaml.compose(text, Loader=yaml.SafeLoader)


def _syntax_error(error: yaml.YAMLError, text: str) -> str:
    """Return line, column and problem of a YAML error, and a remedy for the two mistakes that are made most."""
    if isinstance(error, yaml.reader.ReaderError):
        return f":{text.count(chr(10), 0, error.position) + 1}: is not valid YAML: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError) or (mark := error.problem_mark) is None:
        return f": is not valid YAML: {error}"
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    remedy = "indent with spaces, not tabs" if "\t" in line else "check its indentation, brackets and quotes"
    return f":{mark.line + 1}: is not valid YAML (column {mark.column + 1}): {error.problem}; {remedy}"


def _check_form(file: str, document: Any, root: yaml.Node | None) -> None:
    """Refuse errors that the Pulumi CLI ignores silently."""
    for line, key in _duplicates(root):
        raise SettingsError(f"{file}:{line}: {key}: duplicate key; remove one of the two")
    if not isinstance(document, dict) or not isinstance(document.get("config") or {}, dict):
        raise SettingsError(f"{file}:1: expected a mapping with the key 'config', as `pulumi config` writes it")
    for key, value in document.items():
        where = f"{file}:{_line(root, key)}: {key}"
        if key not in FILE_KEYS:
            raise SettingsError(
                f"{where}: unknown key; expected one of {', '.join(FILE_KEYS)}; settings belong below 'config'"
            )
        if key in TEXT_KEYS and not isinstance(value, str | None):
            raise SettingsError(f"{where}: expected the text that the Pulumi CLI wrote")
    for key in document.get("config") or {}:
        namespace = str(key).rpartition(":")[0] or PROJECT
        if namespace not in (PROJECT, *FOREIGN_NAMESPACES):
            where = f"{file}:{_line(_below_config(root), key)}: {key}"
            raise SettingsError(f"{where}: unknown namespace {namespace!r}; this project's is {PROJECT!r}")


def _line(node: yaml.Node | None, name: Any) -> int:
    """Return the line of a key of a mapping, counted from 1."""
    keys = (key for key, _value in node.value) if isinstance(node, yaml.MappingNode) else ()
    return next((key.start_mark.line + 1 for key in keys if key.value == str(name)), 1)


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


def _below_config(root: yaml.Node | None) -> yaml.Node | None:
    pairs = root.value if isinstance(root, yaml.MappingNode) else ()
    return next((value for key, value in pairs if key.value == "config"), None)


def _nested_lines(node: yaml.Node | None, above: str) -> Iterator[tuple[str, int]]:
    """Yield (dotted key, line counted from 1)."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted = f"{above}{key.value}" if above else _own_key(str(key.value))
        yield dotted, key.start_mark.line + 1
        yield from _nested_lines(value, f"{dotted}.")


def load_file(path: Path, decrypt: Decrypt | None = None) -> StackSettings:
    """Return the settings of a stack's configuration file.

    Args:
        path: of the file.
        decrypt: returns the text of a value that `pulumi config set --secret` has stored.

    Raises:
        SettingsError: an unknown, mistyped or contradictory setting; names file, line, key and what was expected.
    """
    file = ConfigFile.read(path)
    secret: set[str] = set()

    def plain(value: Any, key: str) -> Any:
        if isinstance(value, dict) and list(value) == ["secure"]:
            secret.add(key)
            return _decode(_decrypted(str(value["secure"]), place(key, path.name, file.lines), key, decrypt))
        return (
            {name: plain(each, f"{key}.{name}") for name, each in value.items()} if isinstance(value, dict) else value
        )

    values = {key: plain(value, key) for key, value in file.values.items()}
    return _validate(values, file.path.name, file.lines, secret)


def _decrypted(ciphertext: str, place: str, key: str, decrypt: Decrypt | None) -> str:
    try:
        if decrypt is None:
            raise SettingsError("the stack's passphrase is not used here")
        return decrypt(ciphertext)
    except ObservatoryError as error:
        raise SettingsError(
            f"{place}: {PROJECT}:{key}: the secret cannot be decrypted: {error}",
            remedy=f"Set it again: `pulumi config set --secret {PROJECT}:{key}`.",
        ) from error


def load_program() -> StackSettings:
    """Return the settings of the running Pulumi program, with either engine.

    Raises:
        SettingsError: as `load_file`, without lines, since the engine passes values only.
    """
    import pulumi  # noqa: PLC0415 - the command reads settings without the SDK
    from pulumi.runtime.config import CONFIG, is_config_secret  # noqa: PLC0415

    values = {_own_key(key): _decode(value) for key, value in CONFIG.get().items() if _own_key(key)}
    secret = {_own_key(key) for key in CONFIG.get() if is_config_secret(key)}
    return _validate(values, f"Pulumi.{pulumi.get_stack()}.yaml", {}, secret)


def _decode(value: Any) -> Any:
    """Return a value as the engine passes it: structured values are JSON text, others plain text."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _validate(values: Mapping[str, Any], file: str, lines: Mapping[str, int], secret: Collection[str]) -> StackSettings:
    platform = values.get("platform", "local")
    if not isinstance(platform, str) or platform not in MODELS:
        raise SettingsError(
            f"{place('platform', file, lines)}: {PROJECT}:platform: expected one of {', '.join(MODELS)} "
            f"(given: {platform!r})"
        )
    try:
        # As JSON: in strict mode pydantic then accepts a mapping as a group, and refuses `true` as a number.
        return MODELS[platform].model_validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        problems = [describe(platform, problem, file, lines, secret) for problem in _causes(error.errors())]
    raise SettingsError("\n".join(problems))


def _causes(problems: Sequence[Any]) -> Iterator[Any]:
    """Yield the errors except that a list is too short, where that is so because its wrong entries do not count."""
    groups = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    yield from (each for each in problems if each["type"] != "too_short" or each["loc"] not in groups)


def check_secret_files(path: Path, settings: StackSettings) -> None:
    """Check that the files of secrets which a stack's settings name can be read, and have what they are for.

    Raises:
        SettingsError: one is missing, cannot be read, is empty, or has no URL; names the settings file, line and key.
    """
    lines, problems = ConfigFile.read(path).lines, []
    groups = {"notifications": settings.notifications, "receivers": settings.receivers}
    for name, group in groups.items():
        for key, file in _secret_files(group, name):
            try:
                read_secret(path.parent / file, url=key.endswith(URL_FILES))
            except SettingsError as error:
                problems.append(f"{place(key, path.name, lines)}: {PROJECT}:{key}: {error}; write the secret into it")
    if problems:
        raise SettingsError("\n".join(problems))


def read_secret(file: Path, *, url: bool) -> str:
    """Return the secret in a file; no error has its text.

    Args:
        file: absolute, or relative to the working directory.
        url: whether the secret is an address.

    Raises:
        SettingsError: the file cannot be read, is empty, has several lines, or is no http or https URL.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text") from error
    if not text or not text.isprintable():
        raise SettingsError(f"{file} {'has several lines or control characters' if text else 'is empty'}")
    if url and not _URL.fullmatch(text):
        raise SettingsError(f"{file} has no http or https URL")
    return text


def _secret_files(group: BaseModel, above: str) -> Iterator[tuple[str, Path]]:
    """Yield the dotted key and the path of each file that a group of settings names."""
    for name, value in group:
        if isinstance(value, Path):
            yield f"{above}.{name}", value
        elif isinstance(value, BaseModel):
            yield from _secret_files(value, f"{above}.{name}")
