"""The state of the `local` stack's backup repository: what it lacks, and what cannot be restored from it.

Owns running the check in the sandbox, and keeping its result: findings for the next check, and metrics for Prometheus.
`observatory.nodes.programs.backup_repository` has the rules.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from observatory.backups.pgbackrest import repository_node, repository_settings
from observatory.nodes.programs.backup_repository import Finding, check, check_contents, metrics, still_open
from observatory.runtime import Sandbox


@dataclass(frozen=True, kw_only=True)
class RepositoryCheck:
    """What is wrong, and why a backup cannot be restored to the present, by label; one without an obstacle can."""

    findings: tuple[Finding, ...]
    obstacles: Mapping[str, str]


def check_repository(sandbox: Sandbox, *, contents: bool = False) -> RepositoryCheck:
    """Check the repository and publish the result as metrics.

    A finding that a new full backup makes up for is left out when a sound one was made since it was first found.

    Args:
        sandbox: of the stack, which need not be up.
        contents: read every file, too; takes minutes for each 10 GB. The result counts until the next such check.

    Raises:
        BackupError: the stack has no settings of a repository yet.
    """
    settings, node = repository_settings(sandbox), repository_node(sandbox)
    read = [asdict(each) for each in check_contents(node)] if contents else None
    with sandbox.lock("backup-check"):
        report = check(node)
        file = sandbox.host_path(settings["state"])
        state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if read is not None:
            state["contents"] = read
        findings, state = still_open(report, state, now=time.time())
        sandbox.write_file(settings["state"], json.dumps(state))
        sandbox.write_file(settings["metrics"], metrics(findings, now=time.time()))
    return RepositoryCheck(findings=tuple(findings), obstacles=report.obstacles)
