"""Ends the plugins that a killed Pulumi CLI left: language hosts and hosts of dynamic providers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

_PLUGINS = ("pulumi-resource-", "pulumi-language-", "pulumi-analyzer-")
_DYNAMIC_HOST = "pulumi.dynamic"
_INIT = 1
_END_TIMEOUT_S = 5.0


def end_plugins(directory: Path) -> None:
    """Kill the plugins that work in a project's directory and whose CLI has ended; wait until they have ended."""
    left = list(_orphans(directory))
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=_END_TIMEOUT_S)


def _orphans(directory: Path) -> Iterator[psutil.Process]:
    plugins = {process.pid: process for process in _plugins(directory)}
    for process in plugins.values():
        if _is_abandoned(process, plugins):
            yield process


def _plugins(directory: Path) -> Iterator[psutil.Process]:
    """Yield the plugins that work in a directory or below it."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        named = any(Path(word).name.startswith(_PLUGINS) for word in words[:2]) or _DYNAMIC_HOST in words
        if named and Path(process.info["cwd"] or "/").is_relative_to(directory):
            yield process


def _is_abandoned(process: psutil.Process, plugins: Mapping[int, psutil.Process]) -> bool:
    """Return whether the plugin, or the plugin that started it, has lost its parent to the init process."""
    with contextlib.suppress(psutil.Error):
        parent = process.ppid()
        while parent in plugins:
            parent = plugins[parent].ppid()
        return parent == _INIT or psutil.Process(parent).name() == "systemd"
    return False
