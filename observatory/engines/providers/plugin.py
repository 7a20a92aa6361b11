"""The executables by which the Pulumi CLI finds the in-tree providers, for packages whose plugin is not installed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from observatory.engines.providers import IN_TREE
from observatory.files.atomic import write_file
from observatory.files.cache import home_directory


def is_installed(package: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the CLI has a package's own plugin: in its plugin directory, or on PATH."""
    home = Path(environment.get("PULUMI_HOME") or home_directory() / ".pulumi")
    return any(home.glob(f"plugins/resource-{package}-v*/pulumi-resource-{package}*")) or bool(
        shutil.which(f"pulumi-resource-{package}", path=environment.get("PATH"))
    )


def missing_plugins() -> tuple[str, ...]:
    """Return the packages with an in-tree provider whose own plugin is not installed."""
    return tuple(package for package in IN_TREE if not is_installed(package))


def install(directory: Path) -> Path:
    """Write the executables of all in-tree providers into a directory, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[3]
    for package in IN_TREE:
        script = directory / f"pulumi-resource-{package}"
        command = shlex.join([sys.executable, "-u", "-m", "observatory.engines.providers.server", package])
        text = f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {command}\n"
        write_file(script, text, mode=0o755)
    return directory
