"""The version is the same in the command, the library and the package."""

from __future__ import annotations

import tomllib

from typer.testing import CliRunner

from observatory import __version__
from observatory.cli.app import app
from tests.support.checkout import SOURCE


def test_the_command_prints_the_version_of_the_package() -> None:
    package = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["version"]
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"observatory {package}\n")
    assert __version__ == package


def test_the_changelog_has_the_version() -> None:
    assert f"\n## {__version__} (" in (SOURCE / "CHANGELOG.md").read_text()
