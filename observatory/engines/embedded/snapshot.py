"""A stack's resources as in its checkpoint, and the changes that one run makes to them.

Reads and writes the deployment format (version 3, sdk/go/common/apitype/core.go in Pulumi's source), encrypts the
secrets in it, and merges old and new resources so that every state it writes is valid (pkg/backend/snapshot.go).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from observatory.engines.embedded.backend import StackFiles, now
from observatory.engines.embedded.errors import PassphraseError, StateError, UnsupportedError
from observatory.engines.embedded.secrets import Crypter
from observatory.engines.embedded.values import SECRET, SIGNATURE, is_secret, make_secret, parts, transform

STACK_TYPE = "pulumi:pulumi:Stack"
_FOREIGN_SALT = (
    "the `encryptionsalt` in Pulumi.{stack}.yaml belongs to another passphrase, for example that of another checkout; "
    "nothing was changed. Remove the line, and set the secrets of that file again by `pulumi config set --secret`. Or "
    "set PULUMI_CONFIG_PASSPHRASE_FILE to the passphrase that the file was written with"
)
_REQUIRED = {"urn", "custom", "type"}  # written even when empty
_FLAGS = ("custom", "delete", "external", "pendingReplacement", "protect", "retainOnDelete", "taint")
_TEXTS = ("id", "parent", "provider", "deletedWith")
_LISTS = ("dependencies", "additionalSecretOutputs", "ignoreChanges", "replaceOnChanges", "replaceWith")
_OBJECTS = ("inputs", "outputs", "propertyDependencies", "customTimeouts")
_REFERENCES = ("parent", "deletedWith", "dependencies", "replaceWith", "propertyDependencies")


class State(dict[str, Any]):
    """One resource, with the fields of the checkpoint format; secrets are decrypted and wrapped.

    It has every field that this engine interprets, and keeps the others. ``delete``: the resource is replaced and still
    has to be deleted; ``pendingReplacement``: it is deleted and its replacement still has to be created; ``external``:
    it is read, not owned; ``provider``: its provider's URN and ID, joined by ``::``.

    Attributes:
        encoded: The resource's checkpoint form, or None if it is not encoded since its last change.
    """

    encoded: str | None = None

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Copy the fields; the others are empty."""
        super().__init__(dict.fromkeys(_FLAGS, False) | dict.fromkeys(_TEXTS, ""))
        self.update({key: [] for key in _LISTS} | {key: {} for key in _OBJECTS})
        self.update(fields)

    @property
    def urn(self) -> str:
        """Its URN; the old and the new state of a resource have the same."""
        return str(self["urn"])

    @property
    def type(self) -> str:
        """Its type."""
        return str(self["type"])

    @property
    def package(self) -> str:
        """The package that its type belongs to."""
        return self.type.partition(":")[0]

    @property
    def provider_urn(self) -> str:
        """Its provider's URN, empty for a component."""
        return str(self["provider"]).rpartition("::")[0]

    @property
    def is_managed(self) -> bool:
        """Whether a provider made the resource for this stack; a component and a resource only read are not managed."""
        return bool(self["custom"]) and not self["external"]

    def needs(self) -> set[str]:
        """Return the URNs of the resources that it needs."""
        references = parts([self[key] for key in _REFERENCES])
        return {self.provider_urn, *(part for part in references if isinstance(part, str))} - {""}

    def referring(self, renamed: Mapping[str, str]) -> State:
        """Return it with the URNs that it refers to renamed; a URN that is renamed to an empty one is removed."""

        def new(part: Any) -> Any:
            if isinstance(part, list):
                return [urn for urn in part if urn]
            return renamed.get(part, part) if isinstance(part, str) else part

        if not self.needs() & renamed.keys():
            return self
        return State(self | {key: transform(self[key], new) for key in _REFERENCES})

    def filled(self) -> dict[str, Any]:
        """Return the fields that a checkpoint contains: those that are not empty, and the required ones."""
        return {key: value for key, value in self.items() if value or key in _REQUIRED}


class Snapshot:
    """A stack's resources during one run; every change is on disk before the method returns.

    Thread-safe: concurrent changes share one write.
    """

    def __init__(
        self,
        files: StackFiles,
        latest: dict[str, Any],
        *,
        passphrase: str | None,
        passphrase_file: Path | None = None,
        salt: str | None = None,
        read_only: bool = False,
    ) -> None:
        """Start from the latest deployment.

        Args:
            files: The files to write to, unless ``read_only``.
            latest: The deployment read from there, or an empty one.
            passphrase: The stack's passphrase, or None to decrypt every secret as unknown (see Crypter).
            passphrase_file: The file that has the passphrase, for errors.
            salt: The stack file's ``encryptionsalt`` for new secrets; by default the state's own, or else a new one.
            read_only: Keep changes in memory.

        Raises:
            UnsupportedError: the state's secrets are not under a passphrase.
        """
        manager = latest.get("secrets_providers") or {}
        if manager.get("type", "passphrase") != "passphrase":
            raise UnsupportedError(f"the secrets provider {manager['type']!r}")
        old_salt = (manager.get("state") or {}).get("salt")
        self._reader = self.crypter = Crypter(passphrase, old_salt or salt, file=passphrase_file)
        if salt and old_salt and salt != old_salt:
            self.crypter = Crypter(passphrase, salt, file=passphrase_file)
        self._has_file_salt = bool(salt) and (self.crypter is not self._reader or not old_salt)
        self._files, self._latest, self._read_only = files, latest, read_only
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._news: list[State] = []
        self._operations: list[tuple[State, str]] = []
        self._renamed: dict[str, str] = {}
        self._version = self._written = 0

    def verify(self) -> None:
        """Check the passphrase against the salts of the stack file and the state.

        Raises:
            PassphraseError: it is wrong, or the stack file's salt belongs to another one.
        """
        if self.crypter is not self._reader:
            self._reader.verify()  # first: a passphrase that fits the state is right, and the stack file's salt foreign
        try:
            self.crypter.verify()
        except PassphraseError as error:
            if self._has_file_salt:
                raise PassphraseError(_FOREIGN_SALT.format(stack=self._files.stack)) from error
            raise

    @cached_property
    def olds(self) -> list[State]:
        """The old resources that no step of this run has dealt with yet, dependencies first."""
        self.verify()
        return [self._decode(raw) for raw in self._latest.get("resources") or []]

    @cached_property
    def interrupted(self) -> list[tuple[State, str]]:
        """The operations that an earlier run began and did not end, as (resource, kind)."""
        operations = self._latest.get("pending_operations") or []
        return [(self._decode(operation["resource"]), operation["type"]) for operation in operations]

    @property
    def resources(self) -> list[State]:
        """The resources as they are now, dependencies first."""
        olds = [state.referring(self._renamed) for state in self.olds] if self._renamed else self.olds
        return self._news + olds

    @property
    def changed(self) -> bool:
        """Whether this run has written anything."""
        return self._written > 0

    def begin(self, state: State, kind: str) -> None:
        """Record that an operation (``creating``, ``updating``, ``deleting``) is about to run."""
        with self._lock:
            self._operations.append((state, kind))
        self.save()

    def end(self, subject: State, *, old: State | None = None, new: State | None = None, mark: str = "") -> None:
        """Record that an operation ended, and its result; a failed operation has none.

        Args:
            subject: The state that was passed to ``begin``.
            old: The state to remove.
            new: The state to add.
            mark: The flag to set on ``old`` instead of removing it: what is still to do with it.
        """
        with self._lock:
            self._operations = [(state, kind) for state, kind in self._operations if state is not subject]
            if old is not None and mark:
                old[mark], old.encoded = True, None
            elif old is not None:
                self.olds = [state for state in self.olds if state is not old]
                if new is not None and old.urn != new.urn:
                    self._renamed[old.urn] = new.urn
            is_same = old is not None and new is not None and old.filled() == new.filled()
            if new is not None:
                new.encoded = old.encoded if old is not None and is_same else None
                self._news.append(new)
        if not is_same or new is None or new.encoded is None:
            self.save()

    def amend(self, state: State, **fields: Any) -> None:
        """Change fields of a resource."""
        with self._lock:
            state.update(fields)
            state.encoded = None
        self.save()

    def rebase(self, refreshed: list[State]) -> None:
        """Replace all resources by a refreshed list, and drop the interrupted operations except creations."""
        with self._lock:
            self.olds = refreshed
            self.interrupted = [(state, kind) for state, kind in self.interrupted if kind == "creating"]
        self.save()

    def save(self) -> None:
        """Write the state, unless a concurrent call has already written it.

        Raises:
            StateError: the file cannot be written.
        """
        if self._read_only:
            return
        with self._lock:
            self._version += 1
            requested = self._version
        with self._write_lock:
            if self._written >= requested:
                return
            if not self._written:
                self.verify()
                self._files.back_up()
            with self._lock:
                version, (document, features) = self._version, self._document()
            self._files.write(document, features)
            self._written = version

    def _document(self) -> tuple[str, list[str]]:
        """Return the deployment, and the format's features that it uses."""
        resources = self.resources
        alive = {state.urn for state in resources}
        # Only an interrupted creation outlives the next write, until its resource exists (as with the CLI).
        kept = [(state, kind) for state, kind in self.interrupted if kind == "creating" and state.urn not in alive]
        pending = [f'{{"resource":{self._encode(s)},"type":"{kind}"}}' for s, kind in [*self._operations, *kept]]
        operations = f'"pending_operations":[{",".join(pending)}],' if pending else ""
        salt = {"type": "passphrase", "state": {"salt": self.crypter.salt}}
        document = (
            f'{{"manifest":{_dump(_manifest())},"secrets_providers":{_dump(salt)},'
            f'"resources":[{",".join(map(self._encode, resources))}],{operations}'
            f'"metadata":{_dump(self._latest.get("metadata") or {})}}}'
        )
        return document, [name for name in ("replaceWith", "taint") if any(state[name] for state in resources)]

    def _encode(self, state: State) -> str:
        state.encoded = state.encoded or _dump(transform(state.filled(), self._seal))
        return state.encoded

    def _decode(self, raw: dict[str, Any]) -> State:
        try:
            state = State({key: raw[key] for key in _REQUIRED} | transform(raw, self._open))
        except (TypeError, KeyError) as error:
            raise StateError(
                f"{self._files.checkpoint}: a resource is damaged ({error!r}); restore the state from its copy (.bak)"
            ) from error
        state.encoded = _dump(raw) if self._reader is self.crypter else None
        return state

    def _seal(self, part: Any) -> Any:
        return (
            {SIGNATURE: SECRET, "ciphertext": self.crypter.encrypt(_dump(part["value"]))} if is_secret(part) else part
        )

    def _open(self, part: Any) -> Any:
        if not is_secret(part):
            return part
        text = self._reader.decrypt(part["ciphertext"]) if "ciphertext" in part else part["plaintext"]
        return make_secret(json.loads(text))


def _manifest() -> dict[str, str]:
    from importlib.metadata import version  # noqa: PLC0415 - slow, and needed for writing only

    text = f"v{version('pulumi')}"
    return {"time": now(), "magic": hashlib.sha256(text.encode()).hexdigest(), "version": text}


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
