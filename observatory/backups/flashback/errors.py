"""Errors of flashback. Holds only the classes, so that a module that catches them does not load psycopg."""

from observatory.errors import REFUSED, WRONG_USAGE, ObservatoryError


class FlashbackError(ObservatoryError):
    """Base of the errors of flashback."""


class ConditionError(FlashbackError):
    """The condition of `--where` is not an expression that only reads; nothing was changed."""

    exit_code = WRONG_USAGE


class TableRefusedError(FlashbackError):
    """A table cannot be compared, or its rows cannot be restored; nothing was changed."""

    exit_code = REFUSED


class NotRestoredError(FlashbackError):
    """The missing rows were not inserted, none of them: PostgreSQL refused one."""


class NotRefreshedError(FlashbackError):
    """The missing rows were inserted, but an aggregate that was computed without them was not refreshed."""


class CloneRefusedError(FlashbackError):
    """No further clone can be opened; nothing was changed."""

    exit_code = REFUSED


class UnknownCloneError(FlashbackError):
    """There is no clone of this name; nothing was closed."""

    exit_code = WRONG_USAGE


class NothingNamedError(FlashbackError):
    """Options are about a table, and none is named."""

    exit_code = WRONG_USAGE
