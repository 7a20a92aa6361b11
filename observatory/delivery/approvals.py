"""Decides whether a version may be deployed now: patches always, minor and major versions by windows and approvals.

Owns the rules and the records of approvals. Does not own the windows (`observatory.settings.windows`) nor the identity
of users (`observatory.security.actor`). Rollbacks need no permission.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from observatory.delivery.releases import Manifest, ReleaseError
from observatory.documents.validation import problems
from observatory.errors import REFUSED, ObservatoryError
from observatory.files.atomic import write_file
from observatory.security.signatures import APPROVAL, Signature, SignatureError, sign, signer
from observatory.settings.windows import Window, next_opening

Change = Literal["patch", "minor", "major"]
AGAIN = "run `observatory release approve` again"
CHANGES: tuple[Change, ...] = ("major", "minor", "patch")  # in the order of a version's numbers


class NotPermittedError(ObservatoryError):
    """A version may not be deployed now, nothing changed; the message has the missing approval or the next window."""

    exit_code = REFUSED


class Approval(BaseModel):
    """Permission to deploy one artifact on one stack, signed by its approver.

    Attributes:
        version: of the release.
        sha256: of its artifact; another artifact of the same version is not approved.
        by: the approver, by the name of their key in `delivery.trusted_approvers`.
        at: when, in seconds since the epoch.
        reason: for the record.
        stack: that it is for; None before version 0.2.
        user: the user of the process that signed it; None before version 0.2.
        expires: when it ends, in seconds since the epoch; None before version 0.2.
        signature: of all other fields; None before version 0.2. Such an approval is read but permits nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    version: str
    sha256: str
    by: str
    at: float
    reason: str
    stack: str | None = None
    user: str | None = None
    expires: float | None = None
    signature: Signature | None = None

    @property
    def payload(self) -> bytes:
        """The signed content: everything but the signature, as JSON with sorted keys."""
        return json.dumps(self.model_dump(exclude={"signature"}), sort_keys=True, separators=(",", ":")).encode()

    def signed(self, private_key: str) -> Self:
        """Return the approval with a signature.

        Raises:
            SignatureError: the key cannot be used.
        """
        return self.model_copy(update={"signature": sign(self.payload, private_key, kind=APPROVAL)})

    def objection(self, manifest: Manifest, *, stack: str, approvers: Mapping[str, str], deployer: str) -> str | None:
        """Return why the approval does not permit `deployer` to deploy a release on a stack now, None if it does.

        Args:
            manifest: of the release.
            stack: its name.
            approvers: public keys by the user names of the people who hold them.
            deployer: user name, or `user@host`.
        """
        if self.signature is None or self.expires is None:
            return f"the approval of {self.by} is not signed: {AGAIN}"
        try:
            holder = signer(self.payload, self.signature, approvers, kind=APPROVAL)
        except SignatureError as error:
            return f"the approval of {self.by} does not count: {error}"
        if holder != self.by:
            return f"the approval is signed with the key of {holder}, but names {self.by}: {AGAIN}"
        if (self.version, self.sha256, self.stack) != (manifest.version, manifest.sha256, stack):
            return f"the approval of {self.by} is for {self.version} ({self.sha256[:12]}) on {self.stack!r}: {AGAIN}"
        return self._own_or_ended(self.expires, deployer)

    def _own_or_ended(self, expires: float, deployer: str) -> str | None:
        if time.time() >= expires:
            return (
                f"the approval of {self.by} ended at {datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M %Z}: {AGAIN}"
            )
        if _person(deployer) in {_person(self.by), _person(self.user or "")}:
            return f"{deployer} deploys it and may not approve it: a second person must approve it"
        return None


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
    objection: str | None,
    now: datetime | None = None,
) -> None:
    """Check that a version may be deployed now.

    Args:
        change: from the live version to this one, None if there is none.
        version: for messages.
        windows: when minor and major versions may be deployed; none means at any time.
        approval: changes that need the approval of a second person.
        objection: why no second person's approval counts, None if one does.
        now: the time, by default the current one.

    Raises:
        NotPermittedError: an approval is missing, or no window is open.
    """
    if change is None or change == "patch":
        return
    missing = [objection] if objection and change in approval else []
    if opening := next_opening(windows, now or datetime.now(UTC)):
        missing.append(f"no deployment window is open, the next opens {opening:%A %Y-%m-%d %H:%M %Z}")
    if missing:
        raise NotPermittedError(
            f"{version} is a {change} change: {'; '.join(missing)}. Patches and rollbacks need neither"
        )


def _person(name: str) -> str:
    """Return the user of a `user@host`, whatever its case."""
    return name.partition("@")[0].casefold()
