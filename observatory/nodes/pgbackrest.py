"""pgBackRest: base backups and WAL archiving of this node's PostgreSQL, encrypted, into one repository."""

from __future__ import annotations

import json
from dataclasses import dataclass

from observatory.nodes.unit import Paths, render
from observatory.settings import StackSettings

PROGRAM = "/usr/bin/pgbackrest"
BIN = "/usr/lib/postgresql/17/bin"  # of PostgreSQL
STANZA = "observatory"
S3_PREFIX = "/pgbackrest"  # of the repository's objects in a bucket


@dataclass(frozen=True, kw_only=True)
class S3Repository:
    """A repository in a bucket, which the machine uses with its own role; `key` is the ARN of the KMS key."""

    bucket: str
    region: str
    key: str


def config_file(paths: Paths) -> str:
    """Return the path of pgbackrest.conf."""
    return f"{paths.config}/pgbackrest/pgbackrest.conf"


def config_directory(paths: Paths) -> str:
    """Return the directory of further configuration files."""
    return f"{paths.config}/pgbackrest/conf.d"


def cipher_file(paths: Paths) -> str:
    """Return the path of the configuration file with the repository's passphrase."""
    return f"{config_directory(paths)}/cipher.conf"


def repository(paths: Paths) -> str:
    """Return the directory of a repository on this machine."""
    return f"{paths.data}/backups"


def command(paths: Paths, *arguments: str) -> tuple[str, ...]:
    """Return the command line of a pgBackRest command on this stanza."""
    include = f"--config-include-path={config_directory(paths)}"
    return (PROGRAM, f"--config={config_file(paths)}", include, f"--stanza={STANZA}", *arguments)


def archive_command(paths: Paths) -> str:
    """Return PostgreSQL's archive_command."""
    return " ".join(command(paths, "archive-push", "%p"))


CIPHER_LINE = r"(?m)^repo1-cipher-pass=(\S+)$"
"""The passphrase in the text of `cipher_section`."""


def cipher_section(passphrase: str) -> str:
    """Return the configuration that encrypts the repository."""
    return f"[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={passphrase}\n"


def settings_file(paths: Paths) -> str:
    """Return the path of the file with the settings of `observatory.nodes.programs.backup_repository`."""
    return f"{paths.config}/pgbackrest/repository.json"


def repository_settings(settings: StackSettings, paths: Paths) -> str:
    """Return the content of that file.

    The retention is here and not in pgbackrest.conf, where it would count backups with damaged pages.
    """
    psql = (f"{BIN}/psql", "-h", paths.postgres_socket, "-p", str(settings.ports.postgres), "-U", "postgres")
    document = {
        "database": settings.database.name,
        "port": settings.ports.postgres,
        "retention_days": settings.backups.retention_days,
        "pgbackrest": command(paths),
        "psql": psql,
        "controldata": (f"{BIN}/pg_controldata", "-D", f"{paths.data}/postgres"),
        "state": f"{paths.data}/backup-findings.json",
        "metrics": f"{paths.textfiles}/backups.prom",
    }
    return json.dumps(document, indent=2) + "\n"


def pgbackrest_files(settings: StackSettings, paths: Paths, bucket: S3Repository | None = None) -> dict[str, str]:
    """Return pgbackrest.conf without the passphrase, and the repository's settings, by path.

    Without a bucket, the repository is on this disk.
    """
    return {
        settings_file(paths): repository_settings(settings, paths),
        config_file(paths): render(
            "pgbackrest.conf.j2",
            stanza=STANZA,
            settings=settings,
            paths=paths,
            repository=S3_PREFIX if bucket else repository(paths),
            bucket=bucket,
        ),
    }
