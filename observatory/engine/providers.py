"""Who performs a resource's operations.

Owns the provider interface and the process that hosts dynamic providers. Speaking to that process is ``dynamic``'s;
providers see plain values: secrecy is the deployment's business.
"""

# ruff: noqa: ARG002 - the defaults of an interface

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from observatory.engine.values import Properties

DYNAMIC = "pulumi-python"  # the package of dynamic resources
PROVIDER_TYPE = "pulumi:providers:"  # then a package: the resources that are providers themselves
INTERNAL_KEY = "__internal"  # in a provider's inputs: what the CLI keeps for itself, sdk/go/common/resource/provider
_STOP_SECONDS = 5

# Runs the SDK's host, and dies with the engine: the pipe on stdin breaks when the engine is gone, however it went.
_BOOTSTRAP = """\
import os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
runpy.run_module("pulumi.dynamic", run_name="__main__", alter_sys=True)
"""


class ProviderError(Exception):
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

    def close(self) -> None:
        """Let go of everything held for the run."""


class Packages(dict[str, Provider]):
    """Who serves each package, made when it is first asked for; ``other`` makes who serves all the rest."""

    def __init__(self, makers: Mapping[str, Callable[[], Provider]], other: Callable[[], Provider] | None) -> None:
        super().__init__()
        self._makers, self._other = makers, other

    def __contains__(self, package: object) -> bool:
        """Tell whether anybody serves it."""
        return super().__contains__(package) or package in self._makers or self._other is not None

    def __missing__(self, package: str) -> Provider:
        """Make who serves it."""
        make = self._makers.get(package) or self._other
        if make is None:
            raise KeyError(package)
        self[package] = provider = make()
        return provider

    def close(self) -> None:
        """Close whom this run made."""
        for provider in self.values():
            provider.close()


def _without_internal(inputs: Properties) -> Properties:
    return {key: value for key, value in inputs.items() if key != INTERNAL_KEY}


def start_host(cwd: Path, project: str) -> subprocess.Popen[bytes]:
    """Start the process that hosts the dynamic providers found in the program's directory."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", _BOOTSTRAP],
        cwd=cwd,
        env={**os.environ, "PULUMI_PROJECT": project},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C must not reach a step in flight
    )


def stop_host(host: subprocess.Popen[bytes]) -> None:
    """Stop the host process, if it still runs."""
    host.terminate()
    try:
        host.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        host.kill()
        host.wait()
    for stream in (host.stdin, host.stdout, host.stderr):
        if stream:
            stream.close()
