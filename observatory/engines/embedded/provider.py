"""The interface of a provider, which does the work on the resources of one package.

Providers receive plain values; the deployment wraps and unwraps secrets. ``dynamic`` has the provider of dynamic
resources.
"""

# ruff: noqa: ARG002 - the defaults of an interface

from __future__ import annotations

import uuid
from dataclasses import dataclass

from observatory.engines.embedded.values import Properties
from observatory.errors import ObservatoryError

DYNAMIC = "pulumi-python"  # the package of dynamic resources
PROVIDER_TYPE = "pulumi:providers:"  # followed by a package: a resource that is a provider
INTERNAL_KEY = "__internal"  # in a provider's inputs: the CLI's own data, sdk/go/common/resource/provider


class ProviderError(ObservatoryError):
    """A provider's operation failed.

    Attributes:
        detail: The complete message, including a traceback.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Diff:
    """A provider's comparison of a resource with new inputs.

    Attributes:
        changes: Whether anything changed; None makes the engine compare the inputs.
        replaces: The properties that force a replacement.
        changed: The properties that changed, as far as the provider reports them.
        delete_before_replace: Whether a replacement must delete the old resource first.
    """

    changes: bool | None = None
    replaces: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    delete_before_replace: bool = False


class Provider:
    """Does the work on the resources of one package; raises ProviderError when that fails.

    The defaults only record a resource, as provider resources (``pulumi:providers:*``) need. A provider overrides them.
    """

    def configure(self, config: Properties) -> None:
        """Take the inputs of the provider resource; called before the methods that reach the outside."""

    def check(self, urn: str, olds: Properties, news: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """Return the inputs to use, and the invalid ones as (property, reason)."""
        return news, []

    def diff(self, urn: str, id_: str, inputs: Properties, outputs: Properties, news: Properties) -> Diff:
        """Compare the old inputs and outputs with the new inputs."""
        return Diff()

    def create(self, urn: str, inputs: Properties, timeout: float) -> tuple[str, Properties]:
        """Create the resource; return its ID and outputs. The timeout is in seconds, 0 for the provider's own."""
        return str(uuid.uuid4()), _without_internal(inputs)

    def read(self, urn: str, id_: str, inputs: Properties, outputs: Properties) -> tuple[str, Properties, Properties]:
        """Return the ID (empty if the resource is gone), the outputs and the inputs as they are now."""
        return id_, outputs, inputs

    def update(self, urn: str, id_: str, outputs: Properties, news: Properties, timeout: float) -> Properties:
        """Change the resource from its old outputs to the new inputs; return its outputs."""
        return _without_internal(news)

    def delete(self, urn: str, id_: str, outputs: Properties, timeout: float) -> None:
        """Delete the resource."""

    def abort(self) -> None:
        """Abort the calls in flight, so that they fail soon."""

    def close(self) -> None:
        """Release everything that the provider holds for the run."""


def _without_internal(inputs: Properties) -> Properties:
    return {key: value for key, value in inputs.items() if key != INTERNAL_KEY}
