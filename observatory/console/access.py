"""Who may read the console: the browser that opened a link of `observatory console`.

A link is exchanged for a session: a secret in a cookie, and a path that all pages of the session are below. A browser
sends a cookie to every port of its host, so a page of another user's server on this machine would get the cookie. It
does not, because the cookie is for the session's path only, which nothing but this browser knows.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

COOKIE = "observatory_console"
SESSION_SECONDS = 12 * 3600
SESSIONS = 20  # at most; the oldest end
SECRET_BYTES, PATH_BYTES = 32, 16


@dataclass(frozen=True, kw_only=True)
class Session:
    """One browser: its path without slashes, the secret of its cookie, and when it ends on the monotonic clock."""

    path: str
    secret: str
    ends: float


@dataclass(kw_only=True)
class Sessions:
    """The sessions of a console. They end with its process."""

    opened: dict[str, Session] = field(default_factory=dict)

    def open(self) -> Session:
        """Return a new session."""
        made = Session(
            path=secrets.token_urlsafe(PATH_BYTES),
            secret=secrets.token_urlsafe(SECRET_BYTES),
            ends=time.monotonic() + SESSION_SECONDS,
        )
        self.opened[made.path] = made
        while len(self.opened) > SESSIONS:
            del self.opened[next(iter(self.opened))]
        return made

    def find(self, path: str, *sent: str) -> Session | None:
        """Return the session of a path whose secret is among these, None if there is none or it has ended."""
        found = self.opened.get(path)
        if found is None or not any(hmac.compare_digest(found.secret.encode(), each.encode()) for each in sent):
            return None
        if time.monotonic() >= found.ends:
            del self.opened[path]
            return None
        return found


def sent_secrets(cookies: Iterable[str]) -> list[str]:
    """Return each value of the console's cookie in headers `Cookie`.

    There may be several: a server on another port of this machine can set a cookie of the same name for all paths.
    """
    pairs = (each.strip().partition("=") for header in cookies for each in header.split(";"))
    return [value for name, _, value in pairs if name == COOKIE]


def refusal(headers: Mapping[str, str], hosts: frozenset[str], *, host_headers: int) -> str | None:
    """Return why a request is refused before anything else is read, None if it is not.

    A page of the internet can make a browser send requests to loopback, and give loopback a name of its own.

    Args:
        headers: of the request, by lower-case name.
        hosts: that the console is reached by.
        host_headers: number of its headers `Host`.
    """
    host = headers.get("host", "")
    if host_headers != 1 or host not in hosts:
        return f"this console is at {' or '.join(sorted(hosts))} only"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "requests of other pages are refused"
    return None
