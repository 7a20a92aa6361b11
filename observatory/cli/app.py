"""What every command shares: the application, its options, how answers are printed and questions asked."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from observatory.cli.terminal import complain
from observatory.errors import REFUSED


class Output(StrEnum):
    """What the answer looks like."""

    TABLE = "table"
    JSON = "json"


class Engine(StrEnum):
    """Which engine runs the program."""

    AUTO = "auto"
    CLI = "cli"
    EMBEDDED = "embedded"


app = typer.Typer(
    help="Deploys and operates the storage layer of an LLM-observability product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
deploy_group = typer.Typer(help="Deploy the schema, or a version of the service.", no_args_is_help=True)
app.add_typer(deploy_group, name="deploy")
EnvironmentOption = Annotated[str, typer.Option("--environment", "-e", help="The stack.")]
OutputOption = Annotated[Output, typer.Option("--output", help="json: one document on stdout, nothing else.")]
EngineOption = Annotated[Engine, typer.Option(help="auto: the Pulumi CLI where it is on PATH, else the embedded one.")]


def confirm(question: str) -> None:
    """Ask; exit as refused where the answer is no, or where nobody can answer."""
    if not sys.stdin.isatty():
        complain(f"{question} Say --yes to do it without a terminal.")
        raise typer.Exit(REFUSED)
    if not typer.confirm(question):
        raise typer.Exit(REFUSED)


def print_json(document: Any) -> None:
    """Print the one document that `--output json` promises."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201 - the answer
