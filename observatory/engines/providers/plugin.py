"""The in-tree providers as plugins that the Pulumi CLI finds on PATH, for packages whose own plugin is not installed.

Owns the directory with their executables, and the look for the real ones. What they serve is `server`'s.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from observatory.engines.providers import IN_TREE


def is_installed(package: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the CLI has a package's real plugin: in its own directory, or on PATH."""
    home = Path(environment.get("PULUMI_HOME") or Path.home() / ".pulumi")
    return any(home.glob(f"plugins/resource-{package}-v*/pulumi-resource-{package}*")) or bool(
        shutil.which(f"pulumi-resource-{package}", path=environment.get("PATH"))
    )


def missing() -> tuple[str, ...]:
    """Return the packages that are served in-tree because their plugins are not installed."""
    return tuple(package for package in IN_TREE if not is_installed(package))


def install(directory: Path) -> Path:
    """Write the executables of all packages that are served in-tree, and return their directory."""
    directory.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[3]
    for package in IN_TREE:
        script = directory / f"pulumi-resource-{package}"
        command = shlex.join([sys.executable, "-u", "-m", "observatory.engines.providers.server", package])
        text = f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {command}\n"
        if not script.exists() or script.read_text(encoding="utf-8") != text:
            partial = script.with_suffix(f".{os.getpid()}")
            partial.write_text(text, encoding="utf-8")
            partial.chmod(0o755)
            partial.replace(script)
    return directory
