"""Errors of a rollback of the database."""

from observatory.errors import REFUSED, ObservatoryError


class DatabaseRollbackError(ObservatoryError):
    """A rollback of the database failed; the message says what has changed and how to go on."""


class RollbackRefusedError(DatabaseRollbackError):
    """The rollback was refused; nothing was changed."""

    exit_code = REFUSED
