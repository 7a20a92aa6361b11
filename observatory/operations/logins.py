"""The logins of a stack as they are: whose passwords are old, and whose the server does not take any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from observatory import database
from observatory.documents.logins import PairedRole, login, utc_now
from observatory.engines import embedded as engine
from observatory.operations.bootstrap import engine_options
from observatory.progress import Reporter, task
from observatory.settings import StackSettings
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class PasswordStatus:
    """The password of a role's login in use.

    Attributes:
        role: whose.
        login: the one in use.
        age_days: of its password.
        overdue: whether that is more than `access.password_max_age_days`.
        unfinished: whether a rotation has left the other login with a password that was in use.
    """

    role: PairedRole
    login: str
    age_days: int
    overdue: bool
    unfinished: bool


def password_statuses(workspace: Workspace, settings: StackSettings) -> list[PasswordStatus]:
    """Return what the access document says of each role; nothing where there is none yet."""
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


def mend_logins(workspace: Workspace, settings: StackSettings, report: Reporter) -> None:
    """Ask for another password for each login whose password was changed behind the stack's back.

    The `up` that follows sets it, on the server and wherever it is used. A server that cannot be asked is left alone.
    """
    current = workspace.access.read()
    urls = _urls(workspace)
    if current is None or not urls:
        return
    document = current
    wrong = set(_refused(urls, settings.ports.postgres))
    for role, side, _ in document.logins():
        if login(role, side) in wrong:
            document = document.with_pair(role, document.pair(role).renewed(side, utc_now()))
    if wrong:
        with task(report, f"the server refuses the password of {', '.join(sorted(wrong))}: each gets another one"):
            workspace.access.compare_and_set(current, document)


def _urls(workspace: Workspace) -> Mapping[str, str]:
    """Return the URLs of the logins as the last `up` left them."""
    options = engine_options(workspace)
    if "database_urls" not in engine.outputs(options):
        return {}
    urls: Mapping[str, str] = engine.outputs(options, show_secrets=True)["database_urls"]
    return urls


def _refused(urls: Mapping[str, str], port: int) -> Iterator[str]:
    """Yield the logins that PostgreSQL itself does not let in with their passwords."""
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - psycopg only where it is used

    for name, url in urls.items():
        try:
            with database.connect(make_conninfo(url, port=port), purpose="verify passwords"):
                pass
        except database.UnreachableError as error:
            if "password authentication failed" not in str(error):
                return
            yield name
