"""How options and arguments appear in help and in errors: values have the field's names, not Python's types.

typer shows the annotation of a parameter, and the messages of the library that it checks values with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from typer import BadParameter
from typer.core import TyperArgument, TyperOption

# What an option's value is called, by the parameter's name; others have the name of their type.
NAMES: Mapping[str, str] = {
    "environment": "STACK",
    "bake": "SECONDS",
    "health_check_timeout": "SECONDS",
    "timeout": "SECONDS",
    "wait": "SECONDS",
    "lock_wait": "SECONDS",
    "canary_percentage": "PERCENT",
    "days": "DAYS",
    "deployment": "ID",
    "alert": "ALERT",
    "version": "VERSION",
    "rate_limit": "PER_MINUTE",
    "to_time": "TIME",
    "backup_file": "LABEL|DUMP",
    "restore_from": "PATH",
}
TYPES: Mapping[str, str] = {"int": "N", "float": "NUMBER", "Path": "FILE"}


class _Argument(TyperArgument):
    """An argument that is shown as DAEMON, [NAME] or COMMAND..."""

    def _usage_display_name(self) -> str:
        name = self.display_name_raw + ("..." if self.nargs != 1 else "")
        return name if self.required else f"[{name}]"

    def display_type_rich(self, ctx: Any) -> str | None:  # noqa: ARG002 - of the base class
        """Return nothing: the name says what the value is."""
        return None


class _Option(TyperOption):
    """An option whose choices are shown in the same way where it can be repeated."""

    def display_type(self, ctx: Any) -> str:
        """Return the choices, such as <read|write>."""
        return super().display_type(ctx).replace("<list[", "<").replace("]>", ">")


def name_values(commands: Iterable[Any]) -> None:
    """Give the values of all parameters of commands, and of the commands below them, their names."""
    for command in commands:
        name_values(getattr(command, "commands", {}).values())
        for parameter in command.params:
            _name_value(parameter)


def _name_value(parameter: Any) -> None:
    if isinstance(parameter, TyperArgument):
        parameter.__class__ = _Argument
        parameter.metavar = parameter.metavar or parameter.name.upper()
        return
    parameter.__class__ = _Option
    if not (parameter.metavar or parameter.type_descriptor.is_choice or parameter.is_flag):
        kind = getattr(parameter.type_descriptor.annotation, "__name__", "")
        parameter.metavar = NAMES.get(parameter.name) or TYPES.get(kind, "TEXT")


def in_plain_words(error: BadParameter) -> BadParameter:
    """Return a usage error without the words of the library that checked the value."""
    problems = getattr(error.__cause__, "errors", None)
    if problems is not None:
        from observatory.settings.expectations import expectation  # noqa: PLC0415 - brings the models of all settings

        problem = problems()[0]
        given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
        error.message = f"{expectation(problem)}{given}"
    return error
