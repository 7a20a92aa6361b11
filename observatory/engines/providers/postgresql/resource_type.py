"""The base of the resource types: defaults, validation of inputs, and comparison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import psycopg

from observatory.engines.embedded.provider import Diff
from observatory.engines.embedded.values import Properties

DEFAULTS_KEY = "__defaults"  # in inputs: the names of those that are defaults, as the plugin's bridge records them
INSTALL_PLUGIN = "install the postgresql plugin and run the stack with the Pulumi CLI"

Inputs = Mapping[str, Any]


class ResourceType(ABC):
    """One resource type.

    Attributes:
        required: The inputs that a program must set.
        defaults: The other inputs with their defaults. None means no default; a false default is not recorded.
        unsupported: The plugin's outputs that this provider does not set, with their constant values.
        replacing: The inputs whose change replaces the resource.
        sets: The inputs whose order has no meaning.
        delete_before_replace: Whether a replacement deletes the old resource first.
    """

    required: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Inputs]
    replacing: ClassVar[frozenset[str]] = frozenset()
    sets: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[Inputs] = {}
    delete_before_replace: ClassVar[bool] = False

    def problems(self, inputs: Inputs) -> Iterator[tuple[str, str]]:
        """Yield each invalid input as (property, reason)."""
        supported = {*self.required, *self.defaults}
        for name in inputs:
            if name not in supported and name != DEFAULTS_KEY:
                yield name, f"is not supported here; {INSTALL_PLUGIN}"
        for name in self.required:
            if name not in inputs:
                yield name, "is required"

    def complete(self, inputs: Inputs) -> Properties:
        """Return the inputs with all defaults, and sets in the plugin's order."""
        whole = {**self.defaults, **{key: value for key, value in inputs.items() if key != DEFAULTS_KEY}}
        return {key: sorted(set(value)) if key in self.sets and value else value for key, value in whole.items()}

    def select_inputs(self, properties: Inputs) -> Properties:
        """Return those of the properties that are inputs."""
        return {key: properties.get(key) for key in (*self.required, *self.defaults)}

    def outputs(self, found: Inputs) -> Properties:
        """Return the properties read from the server as the plugin's outputs."""
        return {**self.unsupported, **self.complete(found), "id": self.id_of(found)}

    def diff(self, outputs: Inputs, news: Inputs) -> Diff:
        """Compare the outputs with new inputs. As in Terraform, null, zero and empty are equal."""
        old, new = self.complete(outputs), self.complete(news)
        names = sorted({*self.required, *self.defaults})
        changed = tuple(name for name in names if (old.get(name) or None) != (new.get(name) or None))
        replaces = tuple(name for name in changed if name in self.replacing)
        return Diff(
            changes=bool(changed),
            changed=changed,
            replaces=replaces,
            delete_before_replace=bool(replaces) and self.delete_before_replace,
        )

    @abstractmethod
    def id_of(self, inputs: Inputs) -> str:
        """Return the resource's id."""

    def named_by(self, id_: str) -> Properties | None:  # noqa: ARG002 - of the interface
        """Return the properties that an id says of a resource; None if that is not enough to read it."""
        return None

    @abstractmethod
    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Apply the inputs, in the open transaction; `before` has the old outputs, None for a creation."""

    @abstractmethod
    def read(self, connection: psycopg.Connection, outputs: Inputs) -> Properties | None:
        """Read the resource's properties from the server; return None if the resource is gone."""

    @abstractmethod
    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Delete the resource, in the open transaction."""

    def database_of(self, inputs: Inputs) -> str | None:
        """Return the resource's database, or None if it belongs to the whole server."""
        return inputs.get("database")
