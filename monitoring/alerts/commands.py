"""Commands that several runbooks use."""

from __future__ import annotations

from monitoring.model import Step

STATUS = Step("Check which daemons run and are ready.", ("observatory status",))
UP = Step("Start what is missing.", ("observatory up",))
# Sessions that an administrator may end, and that no command of the stack uses. The others have limits of their own:
# a dump waits in a transaction for its workers, a deployment holds its lock in an idle session, a migration runs for
# long. An attempt to end one of a superuser, as those of a dump are, would fail and stop the command.
ORDINARY = "application_name NOT LIKE 'observatory:%' AND usesysid IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)"


def query(sql: str) -> str:
    """Return the command that runs SQL as administrator; the SQL contains no double quote.

    `<ordinary>` in it is the condition `ORDINARY` on pg_stat_activity.
    """
    return f'observatory psql -- -c "{sql.replace("<ordinary>", ORDINARY)}"'


def superuser(sql: str) -> str:
    """Return the command that runs SQL as superuser in the stack's database; the SQL contains no quote.

    The exporter's environment has the socket, the port and the name of the database, which are settings.
    """
    session = '"$DATA_SOURCE_NAME user=postgres application_name=psql"'
    return f"observatory exec postgres-exporter -- sh -c 'psql {session} -c \"{sql}\"'"


def balancer_page(path: str) -> str:
    """Return the command that prints a page of HAProxy's statistics, which requires the monitoring certificate."""
    return (
        "TLS=.observatory/stacks/{stack}/etc/tls; "
        f"curl -s --cacert $TLS/ca.crt --cert $TLS/monitoring.pem 'https://127.0.0.1:18082{path}'"
    )


def logs(daemon: str) -> str:
    """Return the command that prints a daemon's last messages."""
    return f"observatory logs {daemon}"
