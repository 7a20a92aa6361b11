"""Shared by all commands: the application, common options, JSON output and confirmation prompts."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from observatory import __version__
from observatory.cli.terminal import print_error
from observatory.errors import REFUSED


class Output(StrEnum):
    """Format of the result."""

    TABLE = "table"
    JSON = "json"


class Engine(StrEnum):
    """Which engine runs the program."""

    AUTO = "auto"
    CLI = "cli"
    EMBEDDED = "embedded"


COMMANDS = (
    *("up", "preview", "status", "outputs", "env", "down", "bootstrap"),
    *("deploy", "release", "rollout", "rollback", "verify", "report"),
    *("backup", "rotate-passwords", "data", "silence", "logs", "scheduler"),
)


class _Commands(TyperGroup):
    """The commands in the order in which a user meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in that order."""
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=_Commands,
    help="Deploys and operates the storage layer of an LLM-observability product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
deploy_group = typer.Typer(help="Deploy database migrations or a version of the service.", no_args_is_help=True)
app.add_typer(deploy_group, name="deploy")
EnvironmentOption = Annotated[str, typer.Option("--environment", "-e", help="Name of the stack.")]
OutputOption = Annotated[Output, typer.Option("--output", help="json prints one document on stdout, nothing else.")]
EngineOption = Annotated[Engine, typer.Option(help="auto: the Pulumi CLI if it is on PATH, else the embedded engine.")]


def _print_version(requested: bool) -> None:
    if requested:
        print(f"observatory {__version__}")  # noqa: T201 - the result
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""


def confirm(question: str) -> None:
    """Prompt for confirmation; exit with REFUSED when the answer is no or stdin is not a terminal."""
    if not sys.stdin.isatty():
        print_error(f"{question} Confirmation needs a terminal; add --yes to run without one.")
        raise typer.Exit(REFUSED)
    if not typer.confirm(question):
        raise typer.Exit(REFUSED)


def print_json(document: Any) -> None:
    """Print the one document of `--output json`."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201 - the result
