"""The state of the `local` stack's backup repositories: what they lack, and what cannot be restored from them.

Owns running the check in the sandbox, and keeping its result: findings for the next check, and metrics for Prometheus.
`observatory.nodes.programs.backup_repository` has the rules.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from observatory.backups.pgbackrest import PgBackRest
from observatory.interruption.parallel import in_parallel
from observatory.nodes import Paths
from observatory.nodes.programs.backup_repository import (
    Finding,
    WaitingWal,
    metrics,
    still_open,
    waiting_metrics,
    waiting_wal,
)
from observatory.runtime import Sandbox


@dataclass(frozen=True, kw_only=True)
class RepositoryCheck:
    """What is wrong, and why a backup cannot be restored to the present, by repository and label.

    A backup without an obstacle can be restored.
    """

    findings: tuple[Finding, ...]
    obstacles: Mapping[tuple[int, str], str]


def check_repositories(sandbox: Sandbox, *, repository: int | None = None, contents: bool = False) -> RepositoryCheck:
    """Check the repositories and publish the result as metrics.

    A finding that a new full backup makes up for is left out when a sound one was made since it was first found.

    Args:
        sandbox: of the stack, which need not be up.
        repository: return the findings of this one only, and read no file of another.
        contents: read every file, too; takes minutes for each 10 GB. The result counts until the next such check.

    Raises:
        BackupError: the stack has no settings of its repositories yet, or there is no such repository.
    """
    tool = PgBackRest(sandbox)
    settings, numbers = tool.settings(), tool.repositories
    chosen = numbers if repository is None else (repository,)
    for number in chosen:
        tool.node(number)  # there is such a repository
    read = [each for number in chosen for each in tool.verify(number, contents=True).contents] if contents else []
    with sandbox.lock("backup-check"):
        reports = dict(zip(numbers, in_parallel(tool.verify, numbers), strict=True))
        file = sandbox.host_path(settings["state"])
        state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if contents:
            others = [each for each in state.get("contents", []) if each.get("repository", 1) not in chosen]
            state["contents"] = [*others, *map(asdict, read)]
        findings, state = still_open(reports, state, now=time.time())
        sandbox.write_file(settings["state"], json.dumps(state))
        published = metrics(findings, reports, now=time.time()) + waiting_metrics(kept_wal(sandbox))
        sandbox.write_file(settings["metrics"], published)
    obstacles = {(number, label): why for number, found in reports.items() for label, why in found.obstacles.items()}
    return RepositoryCheck(
        findings=tuple(each for each in findings if each.repository in chosen),
        obstacles={place: why for place, why in obstacles.items() if place[0] in chosen},
    )


def kept_wal(sandbox: Sandbox) -> WaitingWal:
    """Return the WAL that PostgreSQL keeps because a repository does not have it yet."""
    return waiting_wal(sandbox.host_path(f"{Paths().data}/postgres/pg_wal"), now=time.time())
