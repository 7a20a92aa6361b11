"""Decides whether a version may be deployed now: patches always, minor and major versions by windows and approvals.

Owns the rules and the records of approvals. Does not own the windows (`observatory.settings.windows`) nor the identity
of users (`observatory.security.actor`). Rollbacks need no permission.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from observatory.delivery.releases import Manifest, ReleaseError
from observatory.documents.validation import problems
from observatory.errors import REFUSED, ObservatoryError
from observatory.files.atomic import write_file
from observatory.settings.windows import Window, next_opening

Change = Literal["patch", "minor", "major"]
CHANGES: tuple[Change, ...] = ("major", "minor", "patch")  # in the order of a version's numbers


class NotPermittedError(ObservatoryError):
    """A version may not be deployed now, nothing changed; the message has the missing approval or the next window."""

    exit_code = REFUSED


class Approval(BaseModel):
    """Permission to deploy one artifact on one stack.

    Attributes:
        version: of the release.
        sha256: of its artifact; another artifact of the same version is not approved.
        by: who approved it.
        at: when, in seconds since the epoch.
        reason: for the record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    sha256: str
    by: str
    at: float
    reason: str


def approval_of(manifest: Manifest, content: bytes, place: str) -> Approval | None:
    """Return the approval of a release from its record, None where that is of another artifact.

    Args:
        manifest: of the release.
        content: of the record.
        place: of the record, for messages.

    Raises:
        ReleaseError: the record is damaged.
    """
    try:
        found = Approval.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(f"{place}: not an approval ({problems(error)}); approve the release again") from error
    return found if found.sha256 == manifest.sha256 else None


class FileApprovals:
    """A stack's approvals: one file for each version, beside the release store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self, manifest: Manifest) -> Approval | None:
        """Return the approval of a release, None where this artifact has none.

        Raises:
            ReleaseError: the record is damaged.
        """
        file = self._file(manifest.version)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ReleaseError(f"{file}: cannot be read: {error.strerror}") from error
        return approval_of(manifest, content, str(file))

    def write(self, approval: Approval) -> None:
        """Store an approval; it replaces an earlier one of the version."""
        file = self._file(approval.version)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, approval.model_dump_json(indent=2) + "\n")

    def _file(self, version: str) -> Path:
        return self.directory / f"{version}.json"


def change_between(live: str, version: str) -> Change | None:
    """Return the first number in which two versions differ, up or down; None where all three are equal.

    Versions before v1.0.0 follow the same rule.
    """
    pairs = zip(_numbers(live), _numbers(version), strict=True)
    return next((change for change, (old, new) in zip(CHANGES, pairs, strict=True) if old != new), None)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("-")[0])]


def check_permitted(
    change: Change | None,
    *,
    version: str,
    windows: Sequence[Window],
    approval: Sequence[Change],
    approver: str | None,
    actor: str,
    now: datetime | None = None,
) -> None:
    """Check that a version may be deployed now.

    Args:
        change: from the live version to this one, None if there is none.
        version: for messages.
        windows: when minor and major versions may be deployed; none means at any time.
        approval: changes that need the approval of a second person.
        approver: who approved the version, None without an approval.
        actor: who deploys.
        now: the time, by default the current one.

    Raises:
        NotPermittedError: an approval is missing, or no window is open.
    """
    if change is None or change == "patch":
        return
    missing = [_unapproved(approver, actor)] if change in approval else []
    if opening := next_opening(windows, now or datetime.now(UTC)):
        missing.append(f"no deployment window is open, the next opens {opening:%A %Y-%m-%d %H:%M %Z}")
    if reasons := [reason for reason in missing if reason]:
        raise NotPermittedError(
            f"{version} is a {change} change: {'; '.join(reasons)}. Patches and rollbacks need neither"
        )


def _unapproved(approver: str | None, actor: str) -> str:
    if approver is None:
        return "it is not approved: run `observatory release approve`, or deploy with --approved-by"
    if _person(approver) == _person(actor):
        return f"{actor} deploys it and may not approve it as {approver}: a second person must approve it"
    return ""


def _person(name: str) -> str:
    """Return the user of a `user@host`, whatever its case."""
    return name.partition("@")[0].casefold()
