"""A stack's resources as its checkpoint holds them, and the changes one run makes to it.

Owns the deployment format (version 3, sdk/go/common/apitype/core.go in Pulumi's source), the encryption of secrets in
it, and the merge of old and new resources that keeps every state written a valid one (pkg/backend/snapshot.go).
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from observatory.engine.backend import StackFiles, now
from observatory.engine.errors import StateError, UnsupportedError
from observatory.engine.secrets import Crypter
from observatory.engine.values import SECRET, SIGNATURE, Properties, make_secret

_REQUIRED = {"urn", "custom", "type"}
_PROPERTIES = {"inputs", "outputs"}
_BOOKKEEPING = {"created", "modified"}


@dataclass(kw_only=True, eq=False)
class ResourceState:
    """One resource of a checkpoint; the attributes are the format's fields.

    Attributes:
        delete: It was replaced, and only its deletion is left to do.
        pending_replacement: It was deleted, and only its replacement's creation is left to do.
        provider: Its provider's URN and ID, joined by ``::``.
        external: Read, not owned: never deleted.
        extra: The format's fields that this engine does not interpret, kept as they are.
        encoded: Its checkpoint form, if it is known and still true.
    """

    urn: str
    type: str
    custom: bool = False
    id: str = ""
    delete: bool = False
    inputs: Properties = field(default_factory=dict)
    outputs: Properties = field(default_factory=dict)
    parent: str = ""
    protect: bool = False
    external: bool = False
    dependencies: list[str] = field(default_factory=list)
    provider: str = ""
    property_dependencies: dict[str, list[str]] = field(default_factory=dict)
    pending_replacement: bool = False
    additional_secret_outputs: list[str] = field(default_factory=list)
    custom_timeouts: dict[str, float] = field(default_factory=dict)
    retain_on_delete: bool = False
    deleted_with: str = ""
    replace_with: list[str] = field(default_factory=list)
    created: str = ""
    modified: str = ""
    ignore_changes: list[str] = field(default_factory=list)
    replace_on_changes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    encoded: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name that the program gave it."""
        return self.urn.rpartition("::")[2]

    @property
    def package(self) -> str:
        """The package whose provider serves it."""
        return self.type.split(":")[0]

    @property
    def provider_urn(self) -> str:
        """Its provider's URN, empty for a component."""
        return self.provider.rpartition("::")[0]

    def needs(self) -> set[str]:
        """Return the URNs that must exist as long as it does."""
        urns = {self.parent, self.provider_urn, self.deleted_with, *self.dependencies, *self.replace_with}
        return urns.union(*self.property_dependencies.values()) - {""}

    def fields(self) -> dict[str, Any]:
        """Return the checkpoint's fields, unencrypted and without empty ones."""
        known = {key: getattr(self, name) for name, key in _FIELDS.items()}
        return {key: value for key, value in known.items() if value or key in _REQUIRED} | self.extra

    def same_as(self, other: ResourceState) -> bool:
        """Tell whether both say the same, but for times and what this engine does not interpret."""
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS.keys() - _BOOKKEEPING)


_FIELDS = {
    f.name: "".join(part.title() if i else part for i, part in enumerate(f.name.split("_")))
    for f in fields(ResourceState)
    if f.name not in {"extra", "encoded"}
}
_NAMES = {key: name for name, key in _FIELDS.items()}


class Snapshot:
    """A stack's resources during one run; every change to it is on disk before its method returns.

    Thread-safe: concurrent changes share one write.
    """

    def __init__(
        self,
        files: StackFiles,
        latest: dict[str, Any],
        *,
        passphrase: str | None,
        salt: str | None = None,
        read_only: bool = False,
    ) -> None:
        """Take over the latest deployment.

        Args:
            files: Where to write it, unless ``read_only``.
            latest: The deployment read from there, or an empty one.
            passphrase: The stack's passphrase; None where there is nothing to read (see Crypter).
            salt: The stack file's ``encryptionsalt``, which new secrets then use; else the state's own, else a new one.
            read_only: Keep changes in memory.

        Raises:
            UnsupportedError: the state's secrets are not under a passphrase.
        """
        manager = latest.get("secrets_providers") or {}
        if manager.get("type", "passphrase") != "passphrase":
            raise UnsupportedError(f"the secrets provider {manager['type']!r}")
        old_salt = (manager.get("state") or {}).get("salt")
        self._reader = Crypter(passphrase, old_salt or salt)
        self.crypter = Crypter(passphrase, salt) if salt and old_salt and salt != old_salt else self._reader
        self._files, self._latest, self._read_only = files, latest, read_only
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._news: list[ResourceState] = []
        self._done: set[ResourceState] = set()
        self._operations: dict[ResourceState, str] = {}
        self._renamed: dict[str, str] = {}
        self._version = self._written = 0

    @cached_property
    def base(self) -> list[ResourceState]:
        """The resources as the run found them, dependencies first."""
        self._reader.verify()
        return [self._decode(raw) for raw in self._latest.get("resources") or []]

    @cached_property
    def interrupted(self) -> list[tuple[ResourceState, str]]:
        """Operations that an earlier run did not live to see the end of, as (resource, kind)."""
        operations = self._latest.get("pending_operations") or []
        return [(self._decode(operation["resource"]), operation["type"]) for operation in operations]

    @property
    def resources(self) -> list[ResourceState]:
        """The resources as they are now, dependencies first."""
        with self._lock:
            return self._current()

    @property
    def changed(self) -> bool:
        """Whether this run has written anything."""
        return self._written > 0

    def begin(self, state: ResourceState, kind: str) -> None:
        """Record that an operation (``creating``, ``updating``, ``deleting``) is about to run."""
        with self._lock:
            self._operations[state] = kind
        self.save()

    def abandon(self, state: ResourceState) -> None:
        """Record that an operation failed and changed nothing."""
        with self._lock:
            self._operations.pop(state, None)
        self.save()

    def amend(self, state: ResourceState, *, write: bool = True, **fields: Any) -> None:
        """Change fields of a resource, in the state file too unless a write is about to follow."""
        with self._lock:
            for name, value in fields.items():
                setattr(state, name, value)
            state.encoded = None
        if write:
            self.save()

    def finish(
        self, subject: ResourceState, *, old: ResourceState | None, new: ResourceState | None, write: bool
    ) -> None:
        """Record that an operation succeeded, and what it left.

        Args:
            subject: The state that it was begun with.
            old: The state that is no more.
            new: The state that is true now.
            write: False if nothing changed that is worth a write of its own.
        """
        with self._lock:
            if self._operations.pop(subject, None):
                subject.encoded = None  # as it was when the operation began
            if old is not None:
                self._done.add(old)
            if new is not None:
                self._news.append(new)
            if old is not None and new is not None and old.urn != new.urn:
                self._renamed[old.urn] = new.urn
        if write:
            self.save()

    def rebase(self, refreshed: list[ResourceState]) -> None:
        """Replace all resources by a refreshed list, and forget interrupted operations but creations."""
        with self._lock:
            self.base = refreshed
            self.interrupted = [(state, kind) for state, kind in self.interrupted if kind == "creating"]
        self.save()

    def save(self) -> None:
        """Write the state, unless a concurrent call already wrote what this one would.

        Raises:
            StateError: the disk refuses.
        """
        if self._read_only:
            return
        with self._lock:
            self._version += 1
            wanted = self._version
        with self._write_lock:
            if self._written >= wanted:
                return
            if not self._written:
                self._files.back_up()
            with self._lock:
                version, document, features = self._version, self._document(), self._features()
            self._files.write(document.encode(), features)
            self._written = version

    def _current(self) -> list[ResourceState]:
        kept = [state for state in self.base if state not in self._done]
        if self._renamed:
            kept = [_rename(state, self._renamed) for state in kept]
        return [state for state in self._news if state not in self._done] + kept

    def _features(self) -> list[str]:
        resources = self._current()
        used = {
            "replaceWith": any(state.replace_with for state in resources),
            "taint": any(state.extra.get("taint") for state in resources),
        }
        return [name for name, is_used in used.items() if is_used]

    def _document(self) -> str:
        resources = self._current()
        alive = {state.urn for state in resources}
        pending = [*self._operations.items(), *(op for op in self.interrupted if _still_pending(op, alive))]
        operations = [f'{{"resource":{self._encode(state)},"type":"{kind}"}}' for state, kind in pending]
        salt = {"type": "passphrase", "state": {"salt": self.crypter.salt}}
        return "".join(
            (
                f'{{"manifest":{_dump(_manifest())},"secrets_providers":{_dump(salt)},"resources":[',
                ",".join(map(self._encode, resources)),
                '],"pending_operations":[' + ",".join(operations) + "]" if operations else "]",
                f',"metadata":{_dump(self._latest.get("metadata") or {})}}}',
            )
        )

    def _encode(self, state: ResourceState) -> str:
        if state.encoded is None:
            known = state.fields()
            sealed = {key: self._seal(known[key]) for key in _PROPERTIES & known.keys()}
            state.encoded = _dump(known | sealed)
        return state.encoded

    def _decode(self, raw: dict[str, Any]) -> ResourceState:
        try:
            known = {
                _NAMES[key]: self._open(value) if key in _PROPERTIES else value
                for key, value in raw.items()
                if key in _NAMES
            }
            state = ResourceState(**known, extra={key: value for key, value in raw.items() if key not in _NAMES})
        except (TypeError, KeyError) as error:
            raise StateError(f"{self._files.checkpoint}: a resource is damaged ({error})") from error
        if self._reader is self.crypter:
            state.encoded = _dump(raw)
        return state

    def _seal(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.get(SIGNATURE) == SECRET:
                return {SIGNATURE: SECRET, "ciphertext": self.crypter.encrypt(_dump(value["value"]))}
            return {key: self._seal(child) for key, child in value.items()}
        return [self._seal(child) for child in value] if isinstance(value, list) else value

    def _open(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.get(SIGNATURE) == SECRET:
                text = self._reader.decrypt(value["ciphertext"]) if "ciphertext" in value else value["plaintext"]
                return make_secret(json.loads(text))
            return {key: self._open(child) for key, child in value.items()}
        return [self._open(child) for child in value] if isinstance(value, list) else value


def _still_pending(operation: tuple[ResourceState, str], alive: set[str]) -> bool:
    """Only an interrupted creation outlives the next write, until its resource exists (as with the CLI)."""
    state, kind = operation
    return kind == "creating" and state.urn not in alive


def _rename(state: ResourceState, renamed: dict[str, str]) -> ResourceState:
    """Return the state with its references to renamed resources brought up to date."""
    if not state.needs() & renamed.keys():
        return state

    def new(urn: str) -> str:
        return renamed.get(urn, urn)

    return replace(
        state,
        parent=new(state.parent),
        deleted_with=new(state.deleted_with),
        dependencies=[new(urn) for urn in state.dependencies],
        replace_with=[new(urn) for urn in state.replace_with],
        property_dependencies={key: [new(urn) for urn in urns] for key, urns in state.property_dependencies.items()},
        encoded=None,
    )


def _manifest() -> dict[str, str]:
    from pulumi._version import version  # noqa: PLC0415 - costly, and known only to who writes

    text = f"v{version}"
    return {"time": now(), "magic": hashlib.sha256(text.encode()).hexdigest(), "version": text}


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
