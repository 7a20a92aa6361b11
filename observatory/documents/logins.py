"""The access document: which login of each role is active, and which generation of its password.

Each role that applications and people log in to with a password has two logins, `<role>_a` and `<role>_b`. One is
active; the other can get a new password at any time. The access document is kept beside the stack's state, and
components declare from it, so that a rotation is an `up` of a changed document. Passwords are in the state alone.

Does not own privileges (`components.access`, `observatory.database`), nor the steps of a rotation
(`observatory.operations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from observatory.documents.document_file import DocumentFile
from observatory.errors import ObservatoryError

Side = Literal["a", "b"]
PairedRole = Literal["app", "readonly", "admin"]

PAIRED_ROLES: tuple[PairedRole, ...] = ("app", "readonly", "admin")
POOLED_ROLES: tuple[PairedRole, ...] = ("app", "readonly")  # that connect through pgBouncer only
SIDES: tuple[Side, Side] = ("a", "b")
PROVISIONER = "provisioner"


class AccessError(ObservatoryError):
    """The access document cannot be read or changed; nothing was written."""


def login(role: PairedRole, side: Side) -> str:
    """Return the name of one of a role's two logins."""
    return f"{role}_{side}"


def logins_of(*roles: PairedRole) -> list[str]:
    """Return the names of both logins of each role."""
    return [login(role, side) for role in roles for side in SIDES]


def other(side: Side) -> Side:
    """Return the other side."""
    return "b" if side == "a" else "a"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class LoginState(_Document):
    """One login: the number of passwords it has had, and the time of the last one."""

    generation: Annotated[int, Field(ge=1)] = 1
    since: AwareDatetime

    def renewed(self, now: datetime) -> Self:
        """Return the login with its next password."""
        return self.model_copy(update={"generation": self.generation + 1, "since": now})


class Pair(_Document):
    """A role's two logins.

    Attributes:
        active: the login that clients use.
        retiring: whether the other login still has a password that clients used, as in an unfinished rotation.
        a: the login `<role>_a`.
        b: the login `<role>_b`.
    """

    active: Side = "a"
    retiring: bool = False
    a: LoginState
    b: LoginState

    def side(self, side: Side) -> LoginState:
        """Return the login of one side."""
        return self.a if side == "a" else self.b

    def renewed(self, side: Side, now: datetime) -> Self:
        """Return the pair with a new password for one side."""
        return self.model_copy(update={side: self.side(side).renewed(now)})

    def switched(self, now: datetime) -> Self:
        """Return the pair with the other login active, with a new password."""
        idle = other(self.active)
        return self.renewed(idle, now).model_copy(update={"active": idle, "retiring": True})

    def retired(self, now: datetime) -> Self:
        """Return the pair with a new password, which no client has, for the login that was active before."""
        return self.renewed(other(self.active), now).model_copy(update={"retiring": False})


class AccessDocument(_Document):
    """The logins of one stack, by role."""

    app: Pair
    readonly: Pair
    admin: Pair

    @classmethod
    def first(cls, now: datetime) -> Self:
        """Return the first document of a stack."""
        fresh = Pair(a=LoginState(since=now), b=LoginState(since=now))
        return cls(app=fresh, readonly=fresh, admin=fresh)

    def pair(self, role: PairedRole) -> Pair:
        """Return a role's logins."""
        pair: Pair = getattr(self, role)
        return pair

    def with_pair(self, role: PairedRole, pair: Pair) -> Self:
        """Return the document with a role's pair replaced."""
        return self.model_copy(update={role: pair})

    def active_login(self, role: PairedRole) -> str:
        """Return the active login of a role."""
        return login(role, self.pair(role).active)

    def logins(self) -> Iterator[tuple[PairedRole, Side, LoginState]]:
        """Yield every login."""
        for role in PAIRED_ROLES:
            for side in SIDES:
                yield role, side, self.pair(role).side(side)

    def ages(self, now: datetime) -> Mapping[PairedRole, timedelta]:
        """Return the age of the active login's password, by role."""
        return {role: now - self.pair(role).side(self.pair(role).active).since for role in PAIRED_ROLES}


class AccessStore:
    """The access document of one stack as a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = DocumentFile(
            path=path,
            model=AccessDocument,
            kind="an access document",
            error=AccessError,
            remedy="restore it from a copy, or remove it, and `observatory up` recreates it from the stack's state",
        )

    @property
    def rotation_lock(self) -> Path:
        """The lock file that a rotation of passwords holds."""
        return self.path.with_suffix(".rotation")

    def read(self) -> AccessDocument | None:
        """Return the document, None where there is none yet.

        Raises:
            AccessError: the file is damaged.
        """
        return self._file.read()

    def create(self, document: AccessDocument) -> AccessDocument:
        """Write a first document unless there is one; return the current one.

        Raises:
            AccessError: the file is damaged.
        """
        return self._file.create(document)

    def compare_and_set(self, expected: AccessDocument, changed: AccessDocument) -> AccessDocument:
        """Replace `expected` by `changed`, and return that.

        Raises:
            AccessError: the document changed concurrently, or the file is damaged.
        """

        def successor(current: AccessDocument | None) -> AccessDocument:
            if current != expected:
                raise AccessError(f"{self.path}: the access document changed concurrently; run the command again")
            return changed

        return self._file.change(successor)

    def remove(self) -> None:
        """Remove the document with its locks, when the stack is destroyed."""
        self._file.remove()
        self.rotation_lock.unlink(missing_ok=True)


def utc_now() -> datetime:
    """Return the current time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
