"""Shared by all commands: the application, common options, JSON output and confirmation prompts."""

from __future__ import annotations

import json
import math
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer import BadParameter
from typer.core import TyperGroup

from observatory import __version__
from observatory.cli.parameters import in_plain_words, name_values
from observatory.errors import REFUSED, ObservatoryError


class Output(StrEnum):
    """Format of the result."""

    TABLE = "table"
    JSON = "json"


class Engine(StrEnum):
    """Which engine runs the program."""

    AUTO = "auto"
    CLI = "cli"
    EMBEDDED = "embedded"


GROUPS = {
    "Run the stack": ("up", "status", "preview", "outputs", "down", "env", "bootstrap", "scheduler"),
    "Deploy": ("deploy", "rollback", "release", "rollout"),
    "Observe": ("console", "verify", "report", "logs", "silence"),
    "Data": ("psql", "backup", "migration", "data"),
    "Access": ("key", "rotate-passwords", "certificates", "exec"),
}


class PipeClosedError(ObservatoryError):
    """Stdout, or another pipe or connection, was closed by its reader."""


class _Commands(TyperGroup):
    """The commands in groups; those of every day come first."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        name_values(self.commands.values())

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors of its options are in plain words."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # typer would end the process without a message
            raise PipeClosedError(f"the other end of a pipe or connection was closed: {error}") from error
        except BadParameter as error:
            raise in_plain_words(error) from error.__cause__

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the groups."""
        names = [name for group in GROUPS.values() for name in group]
        return sorted(super().list_commands(ctx), key=names.index)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group."""
        summaries = {name: self._summary(ctx, name, formatter.width) for name in self.list_commands(ctx)}
        widest = max(map(len, summaries))
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), summaries[name]) for name in names])

    def _summary(self, ctx: Any, name: str, width: int) -> str:
        command = self.get_command(ctx, name)
        assert command is not None  # noqa: S101 - the name is from the list
        return command.get_short_help_str(width)


# Plain help: typer's rich tables cut long option names off at the width of the terminal.
app = typer.Typer(
    cls=_Commands,
    help="Deploys and operates the storage layer of an LLM-observability product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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


def finite(value: float | None) -> float | None:
    """Return the value of an option; refuse nan and infinity, which pass the limits of a range."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", min=0, max=86400, callback=finite, help="Seconds to wait for the deployment lock; default: none."
    ),
]


class NotConfirmedError(ObservatoryError):
    """The answer to a question was no, or there is no terminal to answer it on."""

    exit_code = REFUSED


def confirm(question: str) -> None:
    """Prompt for confirmation on stderr.

    Raises:
        NotConfirmedError: the answer is no, or stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise NotConfirmedError(
            f"{question} Confirmation needs a terminal; nothing was changed.", remedy="Add --yes to run without one."
        )
    if not typer.confirm(question, err=True):
        raise NotConfirmedError("not confirmed; nothing was changed")


def print_json(document: Any) -> None:
    """Print the one document of `--output json`."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201 - the result
