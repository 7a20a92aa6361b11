"""Commands that several runbooks use."""

from __future__ import annotations

from monitoring.model import Step

STATUS = Step("Check which daemons run and are ready.", ("observatory status",))
UP = Step("Start what is missing.", ("observatory up",))
_PORT = '$(ls -A /srv/run/postgresql | grep -o "[0-9]*$")'


def query(sql: str) -> str:
    """Return the command that runs SQL as administrator; the SQL contains no double quote."""
    return f'observatory psql -- -c "{sql}"'


def superuser(sql: str) -> str:
    """Return the command that runs SQL as superuser on the database's machine; the SQL contains no quote."""
    psql = f"psql -h /srv/run/postgresql -p {_PORT} -U postgres -d observatory"
    return f"observatory exec patroni -- sh -c '{psql} -c \"{sql}\"'"


def logs(daemon: str) -> str:
    """Return the command that prints a daemon's last messages."""
    return f"observatory logs {daemon}"
