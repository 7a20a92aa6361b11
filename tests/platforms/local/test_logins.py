"""Which logins the server refuses: that of a wrong password, and none of a server that does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from observatory.database.errors import PasswordRefusedError, UnreachableError
from observatory.platforms.local import logins


@pytest.mark.parametrize(
    ("errors", "refused"),
    [
        ({}, []),
        ({"admin_b": PasswordRefusedError("another text")}, ["admin_b"]),
        ({"admin_a": PasswordRefusedError(""), "admin_b": PasswordRefusedError("")}, ["admin_a", "admin_b"]),
        ({"admin_a": UnreachableError("password authentication failed"), "admin_b": PasswordRefusedError("")}, []),
    ],
)
def test_a_login_is_refused_by_the_kind_of_the_error(
    monkeypatch: pytest.MonkeyPatch, errors: dict[str, Exception], refused: list[str]
) -> None:
    @contextlib.contextmanager
    def connect(conninfo: str, *, purpose: str) -> Iterator[None]:
        if error := errors.get(conninfo):
            raise error
        yield

    monkeypatch.setattr(logins, "connect", connect)
    assert list(logins._refused({name: name for name in ("admin_a", "admin_b")}, "/socket", 5432)) == refused
