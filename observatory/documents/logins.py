"""Which logins there are, and which password of each is in use.

Roles that applications and people log in to with a password have two logins, `<role>_a` and `<role>_b`. One is in use;
the other can get a new password at any time. The access document says which one it is, and how often each has been
given a new password; it stands beside the stack's state, and components declare from it, so that a rotation is an `up`
of a changed document. Passwords themselves are in the stack's state alone.

Does not own privileges (`components.access`, `observatory.database`),
nor how a rotation goes (`observatory.operations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from observatory.documents.validation import problems
from observatory.errors import ObservatoryError
from observatory.files.atomic import write_file
from observatory.files.locks import exclusive

Side = Literal["a", "b"]
PairedRole = Literal["app", "readonly", "admin"]

PAIRED_ROLES: tuple[PairedRole, ...] = ("app", "readonly", "admin")
SIDES: tuple[Side, Side] = ("a", "b")
PROVISIONER = "provisioner"


class AccessError(ObservatoryError):
    """The access document cannot be read or used; nothing was changed."""


def login(role: PairedRole, side: Side) -> str:
    """Return the name of one of a role's two logins."""
    return f"{role}_{side}"


def other(side: Side) -> Side:
    """Return the other side."""
    return "b" if side == "a" else "a"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoginState(_Document):
    """One login: how many passwords it has had, and since when it has this one."""

    generation: Annotated[int, Field(ge=1)] = 1
    since: AwareDatetime

    def renewed(self, now: datetime) -> Self:
        """Return the login with its next password."""
        return self.model_copy(update={"generation": self.generation + 1, "since": now})


class Pair(_Document):
    """A role's two logins.

    Attributes:
        active: the one in use.
        retiring: whether the other one still has a password that was in use: a rotation that is not finished.
        a: the one login.
        b: the other.
    """

    active: Side = "a"
    retiring: bool = False
    a: LoginState
    b: LoginState

    def side(self, side: Side) -> LoginState:
        """Return one of the two."""
        return self.a if side == "a" else self.b

    def renewed(self, side: Side, now: datetime) -> Self:
        """Return the pair with a new password for one of the two."""
        return self.model_copy(update={side: self.side(side).renewed(now)})

    def switched(self, now: datetime) -> Self:
        """Return the pair with the other login in use, under a new password."""
        idle = other(self.active)
        return self.renewed(idle, now).model_copy(update={"active": idle, "retiring": True})

    def retired(self, now: datetime) -> Self:
        """Return the pair with a new password, which nobody has, for the login that was in use."""
        return self.renewed(other(self.active), now).model_copy(update={"retiring": False})


class AccessDocument(_Document):
    """The logins of one stack, by role."""

    app: Pair
    readonly: Pair
    admin: Pair

    @classmethod
    def first(cls, now: datetime) -> Self:
        """Return the document of a stack that starts."""
        fresh = Pair(a=LoginState(since=now), b=LoginState(since=now))
        return cls(app=fresh, readonly=fresh, admin=fresh)

    def pair(self, role: PairedRole) -> Pair:
        """Return a role's logins."""
        pair: Pair = getattr(self, role)
        return pair

    def with_pair(self, role: PairedRole, pair: Pair) -> Self:
        """Return the document with another pair for a role."""
        return self.model_copy(update={role: pair})

    def active_login(self, role: PairedRole) -> str:
        """Return the login of a role that is in use."""
        return login(role, self.pair(role).active)

    def logins(self) -> Iterator[tuple[PairedRole, Side, LoginState]]:
        """Yield every login."""
        for role in PAIRED_ROLES:
            for side in SIDES:
                yield role, side, self.pair(role).side(side)

    def ages(self, now: datetime) -> Mapping[PairedRole, timedelta]:
        """Return how old the password in use is, by role."""
        return {role: now - self.pair(role).side(self.pair(role).active).since for role in PAIRED_ROLES}


class AccessStore:
    """The access document of one stack as a file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def rotation_lock(self) -> Path:
        """Held by the one rotation that may run."""
        return self.path.with_suffix(".rotation")

    def read(self) -> AccessDocument | None:
        """Return the document, or None where there is none yet.

        Raises:
            AccessError: the file is damaged.
        """
        try:
            return AccessDocument.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AccessError(f"{self.path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise AccessError(
                f"{self.path}: not an access document ({problems(error)}); restore it from a copy, or remove it, and "
                "`observatory up` makes it out of the stack's state"
            ) from error

    def create(self, document: AccessDocument) -> AccessDocument:
        """Write the first document, unless there is one; return the one that stands."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path.with_suffix(".lock")):
            current = self.read()
            if current is None:
                self.write(document)
            return current or document

    def write(self, document: AccessDocument) -> None:
        """Replace the document; whoever changes one holds the stack's access lock."""
        write_file(self.path, document.model_dump_json(indent=2))

    def remove(self) -> None:
        """Remove the document with its locks, when the stack goes."""
        for path in (self.path, self.path.with_suffix(".lock"), self.rotation_lock):
            path.unlink(missing_ok=True)


def utc_now() -> datetime:
    """Return the time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
