"""The providers of one run, by package: started, registered and configured when they are first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from observatory.engines.embedded.deployment.executor import StepExecutor
from observatory.engines.embedded.deployment.registry import ResourceRegistry
from observatory.engines.embedded.errors import UnsupportedError
from observatory.engines.embedded.provider import DYNAMIC, PROVIDER_TYPE, Provider, ProviderError
from observatory.engines.embedded.snapshot import State
from observatory.engines.embedded.values import Properties

RegisterProvider = Callable[[str, Properties], State]  # the provider resource's type and inputs, to its state


class ProviderPool:
    """Finds the provider of a resource, and calls it."""

    def __init__(
        self,
        registry: ResourceRegistry,
        executor: StepExecutor,
        *,
        running: dict[str, Provider],
        packages: Mapping[str, Callable[[], Provider]],
        config: Properties,
        offline: bool,
    ) -> None:
        """Take over the providers.

        Args:
            registry: Has the provider resources, whose inputs configure the providers.
            executor: Fails a resource whose provider fails.
            running: Providers by package; those started here are added.
            packages: Start the providers of further packages.
            config: The stack's configuration, secrets wrapped.
            offline: Whether a package without a provider is planned without one.
        """
        self._registry, self._executor = registry, executor
        self._running, self._packages, self._config, self._offline = running, packages, config, offline
        self._lock = threading.RLock()  # guards the providers and the two below; held while a provider is configured
        self._defaults: dict[str, str] = {}
        self._configured: set[str] = set()

    def default_reference(self, state: State, register: RegisterProvider) -> str:
        """Return the reference of the default provider of the resource's package, registering it if it is not yet.

        Raises:
            UnsupportedError: this engine has no provider for the package.
        """
        self._find(state)
        package = state.package
        with self._lock:
            if package not in self._defaults:
                record = register(f"{PROVIDER_TYPE}{package}", self._default_inputs(package))
                self._defaults[package] = f"{record.urn}::{record['id']}"
            return self._defaults[package]

    def configured(self, state: State) -> Provider:
        """Return the resource's provider, configured.

        Raises:
            UnsupportedError: this engine has no provider for the package.
            ProviderError: the provider refuses its configuration.
        """
        provider, urn = self._find(state), state.provider_urn
        with self._lock:
            if urn and state.package not in self._configured:
                record = self._registry.latest(urn)
                provider.configure(record["inputs"] if record else {})
                self._configured.add(state.package)
        return provider

    def call(self, operation: str, state: State, method: Callable[[Provider], Any]) -> Any:
        """Call the resource's provider before any step of the resource.

        Raises:
            StepFailed: the provider failed.
            UnsupportedError: this engine has no provider for the package.
        """
        try:
            return method(self.configured(state))
        except ProviderError as error:
            self._executor.refuse(operation, state, str(error), error.detail)

    def abort(self) -> None:
        """Break off all calls in flight."""
        for provider in list(self._running.values()):
            provider.abort()

    def _find(self, state: State) -> Provider:
        package = state.package
        if state.type.startswith(PROVIDER_TYPE) or (self._offline and package not in self._running):
            return Provider()
        if package not in self._running.keys() | self._packages.keys():
            name = state.urn.rpartition("::")[2]
            raise UnsupportedError(f"{state.type} {name!r}: the package {package!r}, which needs a plugin,")
        with self._lock:
            if package not in self._running:
                self._running[package] = self._packages[package]()
            return self._running[package]

    def _default_inputs(self, package: str) -> Properties:
        if package == DYNAMIC:
            return self._config
        own = (key for key in self._config if key.startswith(f"{package}:"))
        return {key.partition(":")[2]: self._config[key] for key in own}
