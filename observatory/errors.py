"""The base of every error that the library raises on purpose, and the exit codes of the command."""

from __future__ import annotations

from typing import ClassVar

DONE, FAILED, WRONG_USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
OUTPUT_CLOSED = 141  # 128 + SIGPIPE, as the shell shows a command that this signal ended


class ObservatoryError(Exception):
    """An error that the command prints without a traceback.

    The message says what failed and where. A subclass sets `exit_code` where it is not `FAILED`.

    Attributes:
        exit_code: of the command that ends with this error.
        remedy: what to do about it, as a sentence; empty if the message contains it.
    """

    exit_code: ClassVar[int] = FAILED

    def __init__(self, message: str = "", *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the message, and the remedy on a line of its own."""
        message = super().__str__()
        return f"{message}\n{self.remedy}" if self.remedy else message
