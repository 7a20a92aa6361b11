"""Reads Pulumi.yaml and the stack's configuration file, as the CLI does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from observatory.engines.embedded.errors import ConfigError
from observatory.engines.embedded.values import Properties, make_secret, transform


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project and one stack's settings.

    Attributes:
        root: The directory of Pulumi.yaml.
        name: The project's name.
        main: The program's directory or file.
        settings: Configuration keys (``project:key``) to raw YAML values, secrets still encrypted.
        salt: The stack file's ``encryptionsalt``, if it has one.
    """

    root: Path
    name: str
    main: Path
    settings: Mapping[str, Any]
    salt: str | None

    @property
    def directory(self) -> Path:
        """The program's directory."""
        return self.main if self.main.is_dir() else self.main.parent

    @classmethod
    def load(cls, cwd: Path, stack: str, config_file: Path | None) -> Project:
        """Read both files.

        Raises:
            ConfigError: a file is missing, is not valid YAML or lacks a required key.
        """
        project = _read(cwd / "Pulumi.yaml")
        name, runtime = project.get("name"), project.get("runtime")
        if not name:
            raise ConfigError(f"{cwd / 'Pulumi.yaml'}: `name` is missing; add the project's name")
        if (runtime.get("name") if isinstance(runtime, dict) else runtime) != "python":
            raise ConfigError(f"{cwd / 'Pulumi.yaml'}: `runtime` is {runtime!r}; the embedded engine needs `python`")
        stack_file = config_file or cwd / f"Pulumi.{stack}.yaml"
        settings = _read(stack_file) if config_file or stack_file.exists() else {}
        values = {key: _default(value) for key, value in (project.get("config") or {}).items()}
        values |= settings.get("config") or {}
        return cls(
            root=cwd,
            name=name,
            main=cwd / (project.get("main") or ""),
            settings={key if ":" in key else f"{name}:{key}": value for key, value in values.items()},
            salt=settings.get("encryptionsalt"),
        )

    def config(self, decrypt: Callable[[str], str]) -> Properties:
        """Return the configuration as programs receive it: strings, structured values as JSON, secrets wrapped."""
        config = {}
        for key, value in self.settings.items():
            plain = transform(value, lambda part: decrypt(part["secure"]) if _is_secure(part) else part)
            if plain is not None:
                config[key] = _text(plain) if plain == value else make_secret(_text(plain))
        return config


def _read(path: Path) -> dict[str, Any]:
    try:
        document = _parse(path.read_text())
    except FileNotFoundError as error:
        place = "run the command in the project's directory" if path.name == "Pulumi.yaml" else "create it"
        raise ConfigError(f"{path} does not exist; {place}, or restore the file from version control") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(document or {}, dict):
        raise ConfigError(f"{path}: the top level is not a mapping; write `key: value` lines")
    return document or {}


@lru_cache(maxsize=8)
def _parse(text: str) -> Any:
    """Parse a file once: one command reads it many times."""
    return yaml.safe_load(text)


def _default(value: Any) -> Any:
    """Return the value of a setting in Pulumi.yaml, which may be declared as ``{type, default}`` or ``{value}``."""
    return value.get("value", value.get("default")) if isinstance(value, dict) else value


def _is_secure(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["secure"]


def _text(value: Any) -> str:
    """Return a setting as text, as the CLI passes it to programs."""
    return (
        json.dumps(value, separators=(",", ":"), default=str) if isinstance(value, dict | list | bool) else str(value)
    )
