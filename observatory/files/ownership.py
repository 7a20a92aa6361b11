"""The user and group that files of the sandbox belong to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """User and group of a file, by their ids."""

    uid: int
    gid: int


def change_owner(path: Path, owner: Owner | None) -> None:
    """Change the owner of `path`, not of what is below it; None leaves it with the calling user."""
    if owner:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
