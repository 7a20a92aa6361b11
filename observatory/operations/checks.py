"""What a check of a stack is: it returns its result as text, or raises."""

from __future__ import annotations

from collections.abc import Callable

from observatory.errors import ObservatoryError

Check = Callable[[], str]


class CheckFailedError(ObservatoryError):
    """A check failed; the message has the result and the expected one."""
