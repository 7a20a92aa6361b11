"""The age of a stack's database passwords."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from observatory.documents.logins import PairedRole, utc_now
from observatory.settings import StackSettings
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class PasswordStatus:
    """The password of a role's active login.

    Attributes:
        role: of the login.
        login: the active one.
        age_days: age of its password.
        overdue: whether that is more than `access.password_max_age_days`.
        unfinished: whether a rotation has not replaced the password of the other login yet.
    """

    role: PairedRole
    login: str
    age_days: int
    overdue: bool
    unfinished: bool


def password_statuses(workspace: Workspace, settings: StackSettings) -> list[PasswordStatus]:
    """Return the status of each role's password; empty where the stack has no logins yet."""
    document = workspace.access.read()
    if document is None:
        return []
    limit = timedelta(days=settings.access.password_max_age_days)
    return [
        PasswordStatus(
            role=role,
            login=document.active_login(role),
            age_days=age.days,
            overdue=age > limit,
            unfinished=document.pair(role).retiring,
        )
        for role, age in document.ages(utc_now()).items()
    ]
