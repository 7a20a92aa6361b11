"""Who performs a resource's operations.

Owns the provider interface; the provider of dynamic resources is ``dynamic``'s. Providers see plain values: secrecy is
the deployment's business.
"""

# ruff: noqa: ARG002 - the defaults of an interface

from __future__ import annotations

import uuid
from dataclasses import dataclass

from observatory.engines.embedded.values import Properties
from observatory.errors import ObservatoryError

DYNAMIC = "pulumi-python"  # the package of dynamic resources
PROVIDER_TYPE = "pulumi:providers:"  # then a package: the resources that are providers themselves
INTERNAL_KEY = "__internal"  # in a provider's inputs: what the CLI keeps for itself, sdk/go/common/resource/provider


class ProviderError(ObservatoryError):
    """A provider's operation failed.

    Attributes:
        detail: The whole message, traceback included.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Diff:
    """A provider's verdict on new inputs.

    Attributes:
        changes: Whether anything changed; None leaves it to a comparison of the inputs.
        replaces: The properties that force a replacement.
        changed: The properties that changed, as far as the provider tells.
        delete_before_replace: Whether a replacement must delete first.
    """

    changes: bool | None = None
    replaces: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    delete_before_replace: bool = False


class Provider:
    """What serves the resources of one package; failures are raised as ProviderError.

    The methods' defaults keep a record and touch nothing, which is what provider resources (``pulumi:providers:*``)
    themselves need. A package served in-tree overrides them.
    """

    def configure(self, config: Properties) -> None:
        """Take the inputs of the provider resource, before anything else."""

    def check(self, urn: str, olds: Properties, news: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """Return the inputs to use, and what is wrong with them as (property, reason)."""
        return news, []

    def diff(self, urn: str, id_: str, inputs: Properties, outputs: Properties, news: Properties) -> Diff:
        """Compare the old inputs and outputs with the new inputs."""
        return Diff()

    def create(self, urn: str, inputs: Properties, timeout: float) -> tuple[str, Properties]:
        """Create the resource; return its ID and outputs. The timeout is in seconds, 0 for the provider's own."""
        return str(uuid.uuid4()), _without_internal(inputs)

    def read(self, urn: str, id_: str, inputs: Properties, outputs: Properties) -> tuple[str, Properties, Properties]:
        """Return the ID (empty if it is gone), outputs and inputs as they really are."""
        return id_, outputs, inputs

    def update(self, urn: str, id_: str, outputs: Properties, news: Properties, timeout: float) -> Properties:
        """Change the resource from its old outputs to the new inputs; return its outputs."""
        return _without_internal(news)

    def delete(self, urn: str, id_: str, outputs: Properties, timeout: float) -> None:
        """Delete the resource."""

    def abort(self) -> None:
        """Break off whatever is under way; what waits for it must fail soon."""

    def close(self) -> None:
        """Let go of everything held for the run."""


def _without_internal(inputs: Properties) -> Properties:
    return {key: value for key, value in inputs.items() if key != INTERNAL_KEY}
