"""The files that a deployment would apply, read, compared with the ledger, parsed and checked.

A plan, a script and a deployment all begin with this, so that each refuses what the others refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from observatory.database.lint import Finding
from observatory.database.lint.pending import findings_in, refuse_errors
from observatory.database.migrations.expand_contract import SchemaRequirement, refuse_contracts, used_schema
from observatory.database.migrations.files import Edition, Migration, read_repeatables
from observatory.database.migrations.history import History, compare, read_files
from observatory.database.migrations.repeatable import (
    as_last,
    check_repeatables,
    pending_repeatables,
    read_entries,
    removed_files,
)
from observatory.database.migrations.resuming import refuse_unresumable
from observatory.database.migrations.statements import Script, parse


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingFiles:
    """What is pending on one database.

    Attributes:
        edition: of the server.
        files: every numbered migration with all variants.
        history: the ledger compared with them.
        numbered: the pending numbered migrations.
        repeatable: every repeatable migration; none while numbered ones stay pending, which they may need.
        changed: those of `repeatable` to apply.
        removed: repeatable migrations that were applied and are no longer in the directory.
        requirements: of the releases that the fleets run or keep for a rollback.
    """

    edition: Edition
    files: tuple[Migration, ...]
    history: History
    numbered: tuple[Script, ...]
    repeatable: tuple[Script, ...]
    changed: tuple[Script, ...]
    removed: tuple[str, ...]
    requirements: Sequence[SchemaRequirement]

    def refuse_contracts(self) -> None:
        """Refuse files that take away what a release needs.

        Raises:
            ContractRefusedError: names the statement and the release.
        """
        newest = max((each.version for each in self.files), default=0)
        last = (as_last(script, newest) for script in self.changed)
        refuse_contracts((*self.numbered, *last), self.requirements)

    def findings(self) -> list[Finding]:
        """Return the findings of the linter in the pending files."""
        last = tuple(as_last(script).migration for script in self.changed)
        used = used_schema(self.history.version, self.requirements)
        pending = (*self.history.pending, *last)
        return findings_in((*self.files, *last), pending, edition=self.edition, used=used)

    def refuse_findings(self) -> list[Finding]:
        """Return the warnings of the linter.

        Raises:
            LintRefusedError: the linter found errors; the message has them.
        """
        findings = self.findings()
        refuse_errors(findings)
        return findings


def read_pending(
    connection: psycopg.Connection,
    *,
    migrations: Path,
    edition: Edition,
    target: int | None = None,
    only: str | None = None,
    requirements: Sequence[SchemaRequirement] = (),
) -> PendingFiles:
    """Return what is pending on the database of a connection; all files are parsed before the first one runs.

    Args:
        connection: to the database.
        migrations: directory of the files.
        edition: of the server.
        target: highest version to apply; None is all.
        only: name of the one file to apply; None is all.
        requirements: of the releases that the fleets run or keep for a rollback.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other.
    """
    files = read_files(connection, migrations)
    history = compare(connection, files, edition=edition, target=target, only=only)
    numbered = tuple(parse(migration) for migration in history.pending)
    refuse_unresumable(connection, numbered, history.interrupted)
    repeatable = tuple(parse(migration) for migration in read_repeatables(migrations, edition))
    check_repeatables(repeatable)
    if only is not None or (target is not None and any(each.version > target for each in files)):
        repeatable = ()
    entries = read_entries(connection)
    changed = pending_repeatables([each.migration for each in repeatable], entries)
    return PendingFiles(
        edition=edition,
        files=files,
        history=history,
        numbered=numbered,
        repeatable=repeatable,
        changed=tuple(script for script in repeatable if script.migration in changed),
        removed=removed_files(read_repeatables(migrations), entries),
        requirements=requirements,
    )
