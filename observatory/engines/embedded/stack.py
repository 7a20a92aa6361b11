"""A stack apart from its runs: creates and removes it, locks it, and reads its outputs and resources from the state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observatory.engines.embedded.backend import StackFiles
from observatory.engines.embedded.errors import StateError
from observatory.engines.embedded.events import Emitter, OnEvent
from observatory.engines.embedded.options import StackOptions, load
from observatory.engines.embedded.secrets import Crypter
from observatory.engines.embedded.snapshot import STACK_TYPE, Snapshot, State
from observatory.engines.embedded.values import PROVIDER_KEY, mask, reveal


@dataclass(frozen=True, kw_only=True)
class ResourceRecord:
    """A resource as it is in the state; secret outputs are masked unless `show_secrets` was given."""

    urn: str
    type: str
    name: str
    id: str
    parent: str
    custom: bool
    protect: bool
    outputs: dict[str, Any]


def init(options: StackOptions) -> None:
    """Create an empty stack, which the Pulumi CLI finds too; an existing stack stays as it is.

    Raises:
        StateError, PassphraseError, ConfigError: the state cannot be read or written.
    """
    project, files = load(options)
    if not files.checkpoint.exists():
        files.back_up()
        Snapshot(
            files, {}, passphrase=options.passphrase, passphrase_file=options.passphrase_file, salt=project.salt
        ).save()


def exists(options: StackOptions) -> bool:
    """Return whether the backend has the stack. Needs no passphrase.

    Raises:
        ConfigError: Pulumi.yaml or the stack's configuration cannot be read.
    """
    _, files = load(options)
    return files.checkpoint.exists()


def full_name(options: StackOptions) -> str:
    """Return the stack's name with its project's, as `project/stack`.

    Raises:
        ConfigError: Pulumi.yaml or the stack's configuration cannot be read.
    """
    project, _ = load(options)
    return f"{project.name}/{options.stack}"


def decrypt_setting(options: StackOptions, ciphertext: str) -> str:
    """Return the text of a setting that `pulumi config set --secret` has stored in the stack's configuration.

    Raises:
        StateError, PassphraseError, ConfigError: it cannot be decrypted.
    """
    project, files = load(options)
    manager = files.read().get("secrets_providers") or {}
    salt = project.salt or (manager.get("state") or {}).get("salt")
    if salt is None:
        raise StateError("neither the configuration nor the state has an `encryptionsalt`")
    crypter = _crypter(options.passphrase, salt, options.passphrase_file)
    crypter.verify()
    return crypter.decrypt(ciphertext)


@functools.lru_cache(maxsize=4)  # the key takes a quarter of a second
def _crypter(passphrase: str, salt: str, file: Path | None) -> Crypter:
    return Crypter(passphrase, salt, file=file)


def remove(options: StackOptions) -> None:
    """Remove the stack's state and history, as `pulumi stack rm --force` does. Its resources are not touched.

    Raises:
        LockedError: another run holds the stack's lock.
    """
    _, files = load(options)
    with files.lock(lambda _text: None):
        files.remove()


@contextmanager
def locked(options: StackOptions, *, on_event: OnEvent | None = None) -> Iterator[None]:
    """Hold the stack's lock during the block, so that neither engine starts a run.

    Raises:
        LockedError: another run holds the stack's lock.
    """
    _, files = load(options)
    with files.lock(Emitter(on_event).warn):
        yield


def clear_locks(options: StackOptions, *, on_event: OnEvent | None = None) -> tuple[int, ...]:
    """Remove the locks that dead processes of this host left on the stack, and return the IDs of those processes.

    Raises:
        LockedError: another run holds the stack's lock.
    """
    _, files = load(options)
    return files.clear_locks(Emitter(on_event).warn)


def outputs(options: StackOptions, *, show_secrets: bool = False) -> dict[str, Any]:
    """Return the stack's outputs from the state. Secrets are masked by default, and the passphrase is not needed then.

    Raises:
        StateError, PassphraseError, ConfigError: the state cannot be read.
    """
    _, files = load(options)
    latest = files.read()
    stacks = [raw for raw in latest.get("resources", []) if raw["type"] == STACK_TYPE]
    if show_secrets:  # decrypts those of the stack only: a state has a hundred
        states = _read_secrets(options, files, latest | {"resources": stacks})
        return next((reveal(state["outputs"]) for state in states), {})
    return next((mask(raw.get("outputs", {})) for raw in stacks), {})


def resources(options: StackOptions, *, show_secrets: bool = False) -> tuple[ResourceRecord, ...]:
    """Return the stack's resources from the state, dependencies first.

    Secrets are masked by default, and the passphrase is not needed then.

    Raises:
        StateError, PassphraseError, ConfigError: the state cannot be read.
    """
    _, files = load(options)
    latest = files.read()
    if show_secrets:
        states = _read_secrets(options, files, latest)
        return tuple(_record(state, reveal) for state in states if not state["delete"])
    return tuple(_record(raw, mask) for raw in latest.get("resources", []) if not raw.get("delete"))


def _read_secrets(options: StackOptions, files: StackFiles, latest: dict[str, Any]) -> list[State]:
    """Return the resources of a state with their secrets."""
    return Snapshot(
        files, latest, passphrase=options.passphrase, passphrase_file=options.passphrase_file, read_only=True
    ).olds


def _record(raw: dict[str, Any], convert: Callable[[Any], Any]) -> ResourceRecord:
    outputs = {key: value for key, value in raw.get("outputs", {}).items() if key != PROVIDER_KEY}
    texts = {key: raw.get(key, "") for key in ("urn", "type", "id", "parent")}
    flags = {key: raw.get(key, False) for key in ("custom", "protect")}
    return ResourceRecord(**texts, **flags, name=raw["urn"].rpartition("::")[2], outputs=convert(outputs))
