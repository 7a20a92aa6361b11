"""pgBackRest: base backups and WAL archiving of this node's PostgreSQL, encrypted, into one repository."""

from __future__ import annotations

from dataclasses import dataclass

from observatory.nodes.unit import Paths, render
from observatory.settings import StackSettings

PROGRAM = "/usr/bin/pgbackrest"
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


def cipher_section(passphrase: str) -> str:
    """Return the configuration that encrypts the repository."""
    return f"[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={passphrase}\n"


def pgbackrest_files(settings: StackSettings, paths: Paths, bucket: S3Repository | None = None) -> dict[str, str]:
    """Return pgbackrest.conf by its path, without the passphrase; without a bucket, the repository is on this disk."""
    return {
        config_file(paths): render(
            "pgbackrest.conf.j2",
            stanza=STANZA,
            settings=settings,
            paths=paths,
            repository=S3_PREFIX if bucket else repository(paths),
            bucket=bucket,
        )
    }
