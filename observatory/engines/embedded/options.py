"""Which stack an operation works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from observatory.engines.embedded.backend import StackFiles
from observatory.engines.embedded.project import Project
from observatory.engines.embedded.provider import Provider

_DEFAULT_PARALLEL = 4  # the workers of the SDK's dynamic provider host


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Which stack to work on, and how.

    Attributes:
        cwd: The project's directory, which holds Pulumi.yaml.
        stack: The stack's name.
        backend: The directory of the ``file://`` backend; it is created if it is missing.
        passphrase: Protects the stack's secrets.
        passphrase_file: The file that has the passphrase, for errors; None where the environment has it.
        config_file: The stack's configuration; by default ``Pulumi.<stack>.yaml`` in ``cwd``, if that exists.
        parallel: How many resources are worked on at once.
        packages: Start the provider of each package that this engine has a provider for.
        plugins: Whether the CLI may download provider plugins; the embedded engine uses none.
    """

    cwd: Path
    stack: str
    backend: Path
    passphrase: str = field(repr=False)
    passphrase_file: Path | None = None
    config_file: Path | None = None
    parallel: int = _DEFAULT_PARALLEL
    packages: Mapping[str, Callable[[], Provider]] = field(default_factory=dict, repr=False)
    plugins: bool = False


def load(options: StackOptions) -> tuple[Project, StackFiles]:
    """Read the project and locate the stack's files.

    Raises:
        ConfigError: Pulumi.yaml or the stack's configuration cannot be read.
    """
    project = Project.load(options.cwd.resolve(), options.stack, options.config_file)
    return project, StackFiles(root=options.backend.resolve(), project=project.name, stack=options.stack)
