"""pgBouncer: transaction pooling between the fleets and PostgreSQL, with a pool for each role."""

from __future__ import annotations

from collections.abc import Mapping

from observatory.documents.login_limits import Limits, limits_of
from observatory.documents.logins import POOLED_ROLES, logins_of
from observatory.nodes.tls import certificate_file, key_file
from observatory.nodes.unit import LOOPBACK, Host, Paths, TcpReady, Unit, render
from observatory.settings import StackSettings

SERVER = "pgbouncer"  # of the certificate
GRACE_S = 5  # PostgreSQL's own timeout ends a statement first, with a better error
CLOSING = 2  # sessions of a login that pgBouncer has closed and PostgreSQL still counts


def users_file(paths: Paths) -> str:
    """Return the path of the file with the roles' passwords."""
    return f"{paths.config}/pgbouncer/users.txt"


def user_lines(passwords: Mapping[str, str]) -> str:
    """Return the users file: pgBouncer needs the passwords themselves to log in to PostgreSQL by SCRAM."""
    return "".join(f'"{role}" "{_quoted(password)}"\n' for role, password in sorted(passwords.items()))


def _quoted(password: str) -> str:
    return password.replace('"', '""')


def enforced_limits(settings: StackSettings) -> dict[str, Limits]:
    """Return the limits of each pooled login, which pgBouncer enforces."""
    pool_size = settings.database.pool_size
    return {name: limits_of(role, pool_size=pool_size) for role in POOLED_ROLES for name in logins_of(role)}


def pool_sizes(settings: StackSettings) -> dict[str, int]:
    """Return the sessions of each pooled login's pool: less than PostgreSQL's limit of the login, which it refuses."""
    size = settings.database.pool_size
    return {login: min(size, limits.connections - CLOSING) for login, limits in enforced_limits(settings).items()}


def pgbouncer(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the pooler of this node, in front of this node's PostgreSQL."""
    port = settings.ports.pgbouncer
    file = f"{paths.config}/pgbouncer/pgbouncer.ini"
    config = render(
        "pgbouncer.ini.j2",
        settings=settings,
        host=host,
        users_file=users_file(paths),
        run=paths.run,
        socket=paths.postgres_socket,
        limits=enforced_limits(settings),
        pool_sizes=pool_sizes(settings),
        grace_s=GRACE_S,
        certificate=certificate_file(paths, SERVER),
        key=key_file(paths, SERVER),
    )
    return Unit(
        name="pgbouncer",
        command=("/usr/sbin/pgbouncer", file),
        ready=TcpReady(port=port),
        priority=25,
        ports={"ports.pgbouncer": port},
        files={file: config},
        reload_signal="HUP",
        stop_signal="INT",  # waits for the transactions under way
        stop_seconds=20,
    )
