"""May a version be deployed now? By how much it changes: patches at any time, minor and major ones as the stack says.

Owns the rules and the records of approvals. Does not own the hours (`observatory.settings.windows`) nor who one is.
Rollbacks are never asked: what is wrong must be undone at any hour.
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
from observatory.files.atomic import partial_path
from observatory.settings.windows import Window, next_opening

Change = Literal["patch", "minor", "major"]
CHANGES: tuple[Change, ...] = ("major", "minor", "patch")  # as a version's numbers stand


class NotPermittedError(ObservatoryError):
    """A version may not be deployed now, and nothing was changed; the message says what is missing, or until when."""

    exit_code = REFUSED


class Approval(BaseModel):
    """Somebody's word that a release may be deployed on one stack: this artifact and no other of the same version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    sha256: str
    by: str
    at: float
    reason: str


def approval_of(manifest: Manifest, content: bytes, place: str) -> Approval | None:
    """Return the approval of a release by its record, which was found at `place`; None where it is of another artifact.

    Raises:
        ReleaseError: the record is damaged.
    """
    try:
        found = Approval.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(f"{place}: not an approval ({problems(error)}); approve the release again") from error
    return found if found.sha256 == manifest.sha256 else None


class FileApprovals:
    """A stack's approvals, a file for each version beside the release store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self, manifest: Manifest) -> Approval | None:
        """Return the approval of a release, or None where nobody has approved this artifact.

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
        """Keep an approval; an earlier one of the version is replaced."""
        file = self._file(approval.version)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(file)
        try:
            partial.write_text(approval.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def _file(self, version: str) -> Path:
        return self.directory / f"{version}.json"


def change_between(live: str, version: str) -> Change | None:
    """Return the foremost number in which two versions differ, up or down; None where they are of the same numbers.

    Before v1.0.0 the numbers count as they do after it.
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
        change: that it makes.
        version: for messages.
        windows: in which minor and major versions are deployed; none is at any time.
        approval: which changes somebody else must have approved.
        approver: who has approved, None where nobody has.
        actor: who deploys.
        now: None is this moment.

    Raises:
        NotPermittedError: it may not.
    """
    if change is None or change == "patch":
        return
    missing = [_unapproved(approver, actor)] if change in approval else []
    if opening := next_opening(windows, now or datetime.now(UTC)):
        missing.append(f"no window for deployments is open, the next opens {opening:%A %Y-%m-%d %H:%M %Z}")
    if reasons := [reason for reason in missing if reason]:
        raise NotPermittedError(
            f"{version} is a {change} change: {'; '.join(reasons)}. Patches and rollbacks may go at any time"
        )


def _unapproved(approver: str | None, actor: str) -> str:
    if approver is None:
        return "nobody has approved it, by `observatory release approve` or --approved-by"
    if _person(approver) == _person(actor):
        return f"{actor} deploys it, so somebody else than {approver} must approve it"
    return ""


def _person(name: str) -> str:
    """Return who somebody is, on whichever machine."""
    return name.partition("@")[0].casefold()
