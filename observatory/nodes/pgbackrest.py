"""pgBackRest: base backups and WAL archiving of this node's PostgreSQL, encrypted, into its repositories.

Repositories are numbered from 1. Each has a passphrase of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.nodes.unit import Paths, render
from observatory.settings import LocalSettings, StackSettings

PROGRAM = "/usr/bin/pgbackrest"
BIN = "/usr/lib/postgresql/17/bin"  # of PostgreSQL
STANZA = "observatory"
REPOSITORIES = (1, 2)  # of a machine that keeps its backups on its own disks


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


def cipher_file(paths: Paths, number: int = 1) -> str:
    """Return the path of the configuration file with a repository's passphrase."""
    return f"{config_directory(paths)}/cipher{_suffix(number)}.conf"


def repository(paths: Paths, number: int = 1) -> str:
    """Return the directory of a repository in the machine's own data."""
    return f"{paths.data}/backups{_suffix(number)}"


def outside_repository(number: int) -> str:
    """Return the place at which daemons see a repository that is outside of a local stack's home."""
    return f"/run/backups{_suffix(number)}"


def outside_directories(settings: StackSettings) -> dict[int, Path]:
    """Return the host's directories of the repositories that are outside of a local stack's home, by number."""
    places = settings.backups.repositories if isinstance(settings, LocalSettings) else ()
    return {number: each.path for number, each in enumerate(places, 1) if each.path}


def s3_prefix(number: int) -> str:
    """Return the prefix of a repository's objects in its bucket.

    Not one for all: the second bucket of a stack of version 0.1 has a copy of the first one's objects.
    """
    return f"/pgbackrest{_suffix(number)}"


def spool(paths: Paths) -> str:
    """Return the directory where asynchronous archiving records what is archived; it survives a restart."""
    return f"{paths.data}/archive-spool"


def _suffix(number: int) -> str:
    return "" if number == 1 else f"-{number}"


def command(paths: Paths, *arguments: str) -> tuple[str, ...]:
    """Return the command line of a pgBackRest command on this stanza."""
    include = f"--config-include-path={config_directory(paths)}"
    return (PROGRAM, f"--config={config_file(paths)}", include, f"--stanza={STANZA}", *arguments)


def archive_command(paths: Paths) -> str:
    """Return PostgreSQL's archive_command."""
    return " ".join(command(paths, "archive-push", "%p"))


def restore_command(paths: Paths, number: int, directory: str | None = None) -> str:
    """Return PostgreSQL's restore_command that reads WAL from one repository; `directory`: not of the live data."""
    place = () if directory is None else (f"--pg1-path={directory}",)
    return " ".join(command(paths, f"--repo={number}", *place, "archive-get", "%f", '"%p"'))


def cipher_section(passphrase: str, number: int = 1) -> str:
    """Return the configuration that encrypts a repository."""
    return f"[global]\nrepo{number}-cipher-type=aes-256-cbc\nrepo{number}-cipher-pass={passphrase}\n"


def passphrase_in(section: str, number: int = 1) -> str | None:
    """Return the passphrase in the text of `cipher_section`; None where it has none."""
    found = re.search(rf"(?m)^repo{number}-cipher-pass=(\S+)$", section)
    return found[1] if found else None


def settings_file(paths: Paths) -> str:
    """Return the path of the file with the settings of `observatory.nodes.programs.backup_repository`."""
    return f"{paths.config}/pgbackrest/repository.json"


def repository_settings(settings: StackSettings, paths: Paths, numbers: Sequence[int] = REPOSITORIES) -> str:
    """Return the content of that file.

    The retention is here and not in pgbackrest.conf, where it would count backups with damaged pages.
    """
    psql = (f"{BIN}/psql", "-h", paths.postgres_socket, "-p", str(settings.ports.postgres), "-U", "postgres")
    document = {
        "database": settings.database.name,
        "port": settings.ports.postgres,
        "repositories": tuple(numbers),
        "retention_days": settings.backups.retention_days,
        "pgbackrest": command(paths),
        "psql": psql,
        "controldata": (f"{BIN}/pg_controldata", "-D", f"{paths.data}/postgres"),
        "state": f"{paths.data}/backup-findings.json",
        "metrics": f"{paths.textfiles}/backups.prom",
    }
    return json.dumps(document, indent=2) + "\n"


def pgbackrest_files(settings: StackSettings, paths: Paths, buckets: Sequence[S3Repository] = ()) -> dict[str, str]:
    """Return pgbackrest.conf without the passphrases, and the repositories' settings, by path.

    Without buckets, the repositories are on this machine's disks.
    """
    numbered = dict(enumerate(buckets, 1)) if buckets else dict.fromkeys(REPOSITORIES)
    places = {number: s3_prefix(number) for number in numbered} if buckets else _directories(settings, paths)
    return {
        settings_file(paths): repository_settings(settings, paths, tuple(numbered)),
        config_file(paths): render(
            "pgbackrest.conf.j2",
            stanza=STANZA,
            settings=settings,
            paths=paths,
            spool=spool(paths),
            repositories=[(number, places[number], bucket) for number, bucket in numbered.items()],
        ),
    }


def pgbackrest_directories(
    settings: StackSettings, paths: Paths, buckets: Sequence[S3Repository] = ()
) -> tuple[str, ...]:
    """Return the directories of the machine's own that pgBackRest writes to."""
    outside = outside_directories(settings)
    return (spool(paths), *(repository(paths, each) for each in REPOSITORIES if not buckets and each not in outside))


def _directories(settings: StackSettings, paths: Paths) -> dict[int, str]:
    outside = outside_directories(settings)
    return {each: outside_repository(each) if each in outside else repository(paths, each) for each in REPOSITORIES}
