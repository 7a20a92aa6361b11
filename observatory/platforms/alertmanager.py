"""Silences in Alertmanager, by its API v2: those of deployments, which expire soon after a deployment dies, and others.

`silence_terms` limits what a silence covers. Silences do not affect gates, which query Prometheus.
See https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observatory.errors import WRONG_USAGE, ObservatoryError
from observatory.platforms.silence_matchers import operator_of
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import FleetName
from observatory.waiting import wait_until

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS = 2.0
KEPT_SECONDS, KEPT_POLL_S = 30.0, 0.1  # six times Alertmanager's interval
SILENCE_SECONDS, EXTEND_SECONDS = 120.0, 30.0  # duration of a deployment's silence, and between its extensions
AFTER_SECONDS = 20.0  # of a silence of an alert, until Prometheus has seen the end of what it was for
# How far Alertmanager's clock may be behind. It replaces a past start of a silence by its own time; with one that is
# still to come the silence would not cover anything yet, and an extension would end the silence before it.
BEHIND_SECONDS = 300.0


class AlertmanagerError(ObservatoryError):
    """Alertmanager does not answer, or refused the request; the message has its address and answer."""


class UnknownSilenceError(ObservatoryError):
    """The stack has no such silence."""

    exit_code = WRONG_USAGE


@dataclass(frozen=True, kw_only=True)
class Silence:
    """One active or pending silence.

    Attributes:
        id: the silence's id.
        matchers: of the alerts that it silences, such as `fleet="green"`.
        created_by: a deployment's id, or `user@host`.
        reason: as text.
        starts: when it becomes active.
        ends: when it expires.
    """

    id: str
    matchers: tuple[str, ...]
    created_by: str
    reason: str
    starts: datetime
    ends: datetime


@dataclass(frozen=True, kw_only=True)
class Alertmanager:
    """The Alertmanager of a stack. Every method raises AlertmanagerError where it does not answer.

    `client` is the certificate that it requires, if any. `snapshot` is the file that it writes its silences to, if that
    is on this machine.
    """

    url: str
    stack: str
    client: ClientCertificate | None = None
    snapshot: Path | None = None

    def silences(self) -> list[Silence]:
        """Return the silences of exactly this stack that have not expired, the next to end first."""
        return _lasting(self._read("silences", filter=[f'stack="{self.stack}"']))

    def covering_silences(self) -> list[Silence]:
        """Return the silences that may cover alerts of the stack, also those that others made with any matchers."""
        from observatory.platforms.silence_terms import may_cover  # noqa: PLC0415 - not for a rollback

        return _lasting([each for each in self._read("silences") if may_cover(self.stack, each["matchers"])])

    def muted_alerts(self) -> list[Mapping[str, str]]:
        """Return the labels of the stack's alerts that a silence, an inhibition or a time interval mutes."""
        groups = self._read("alerts/groups", filter=[f'stack="{self.stack}"'])  # `alerts` has no time intervals
        return [each["labels"] for group in groups for each in group["alerts"] if _is_muted(each["status"])]

    def silence(
        self,
        *,
        fleet: FleetName | None,
        alert: str | None,
        seconds: float,
        created_by: str,
        reason: str,
        matchers: Sequence[str] = (),
        replaces: str | None = None,
    ) -> str:
        """Silence alerts from now on, and return the silence's id.

        Args:
            fleet: the fleet of the alerts; None for any.
            alert: the alert's name; None for all but those that are never silenced.
            seconds: until the silence expires.
            created_by: a deployment's id, or `user@host`.
            reason: as text.
            matchers: of further labels, as `instance="blue-1"`.
            replaces: the id of a silence with the same matchers to extend; an expired one is created again.

        Raises:
            SilenceRefusedError: it would cover the whole stack, or an alert that is never silenced.
            SilenceUsageError: a matcher, the name, the duration or the reason is not valid.
        """
        from observatory.platforms.silence_terms import check_terms, selection  # noqa: PLC0415 - not for a rollback

        check_terms(seconds, reason)
        now = datetime.now(UTC)
        document = {
            "matchers": selection(self.stack, fleet=fleet, alert=alert, matchers=matchers),
            "startsAt": (now - timedelta(seconds=BEHIND_SECONDS)).isoformat(),
            "endsAt": (now + timedelta(seconds=seconds)).isoformat(),
            "createdBy": created_by,
            "comment": reason,
            **({"id": replaces} if replaces else {}),
        }
        return str(self._document(self._call("POST", "silences", json=document))["silenceID"])

    def end(self, silence: str) -> None:
        """Expire a silence now; expiring it again does nothing."""
        self._call("DELETE", f"silence/{silence}")

    def end_all(self, created_by: str) -> None:
        """Expire all silences of a creator."""
        for silence in self.silences():
            if silence.created_by == created_by:
                self.end(silence.id)

    def wait_until_kept(self) -> None:
        """Return when every change so far is on disk, so that it outlives Alertmanager's process.

        Alertmanager writes all silences every few seconds. A write that is under way may lack the last change; the next
        one has it.
        """
        if self.snapshot and not (_next_write(self.snapshot) and _next_write(self.snapshot)):
            raise AlertmanagerError(
                f"Alertmanager at {self.url} has made the change, but has not written it to {self.snapshot} within "
                f"{KEPT_SECONDS:.0f} s: if it is killed now, the change is lost",
                remedy="log/alertmanager.log in the stack's home shows why.",
            )

    def _read(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._document(self._call("GET", path, params=parameters))
        return found

    def _document(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:  # such as the page of a proxy that requires a login
            raise AlertmanagerError(
                f"Alertmanager at {self.url} answered {answer.status_code} without JSON: {answer.text[:200]!r}"
            ) from error

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        import httpx  # noqa: PLC0415 - a rollback shifts traffic before it needs this

        try:
            verify = self.client.context() if self.client else True
            url = f"{self.url}/api/v2/{path}"
            answer = httpx.request(method, url, timeout=ANSWER_SECONDS, verify=verify, **options)
        except (httpx.HTTPError, OSError) as error:  # OSError: a file of the certificate cannot be read
            raise AlertmanagerError(f"Alertmanager at {self.url} does not answer: {error}") from error
        if not answer.is_success:
            raise AlertmanagerError(f"Alertmanager at {self.url} answered {answer.status_code}: {answer.text[:200]}")
        return answer


@dataclass(frozen=True)
class Silenced:
    """What a command silences while it does something: a fleet's alerts, or one alert; `by` is its deployment's id."""

    by: str
    fleet: FleetName | None
    alert: str | None
    reason: str


@dataclass(frozen=True)
class FleetSilences:
    """The silences of deployments and of rollbacks; `record` of the journal records each failure of Alertmanager."""

    alertmanager: Alertmanager
    record: Callable[..., None]

    @contextlib.contextmanager
    def moving(self, deployment: str, fleet: FleetName) -> Iterator[None]:
        """Silence a fleet's alerts during the block; a silence that a killed command left is extended."""
        reason = f"a deployment changes {fleet}; the silence ends with it"
        with self._extended(Silenced(by=deployment, fleet=fleet, alert=None, reason=reason)):
            yield

    @contextlib.contextmanager
    def announced(self, by: str, alert: str, reason: str) -> Iterator[None]:
        """Silence an alert that the block causes, and for `AFTER_SECONDS` after it."""
        silenced = Silenced(by=by, fleet=None, alert=alert, reason=reason)
        with self._extended(silenced):
            yield
        _Keeper(self, silenced).extend(AFTER_SECONDS)

    @contextlib.contextmanager
    def _extended(self, silenced: Silenced) -> Iterator[None]:
        keeper = _Keeper(self, silenced)
        try:
            keeper.extend()
            keeper.start()
            yield
        finally:
            keeper.stop()
            self.end(silenced.by)

    def end(self, deployment: str) -> None:
        """Expire a deployment's silences; if that fails, they expire within `SILENCE_SECONDS`."""
        with self.recorded("end", deployment):
            self.alertmanager.end_all(deployment)

    @contextlib.contextmanager
    def recorded(self, what: str, deployment: str) -> Iterator[None]:
        """Record a failure of Alertmanager in the block, and continue."""
        try:
            yield
        except AlertmanagerError as error:
            self.record("not-silenced", deployment=deployment, what=what, reason=str(error))


class _Keeper(threading.Thread):
    """Extends one silence until it is stopped."""

    def __init__(self, owner: FleetSilences, silenced: Silenced) -> None:
        super().__init__(name=f"silence-{silenced.fleet or silenced.alert}", daemon=True)
        self._owner, self._silenced = owner, silenced
        self._id: str | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(EXTEND_SECONDS):
            self.extend()

    def stop(self) -> None:
        self._ended.set()
        if self.is_alive():  # an interrupt may have come before its start
            self.join()

    def extend(self, seconds: float = SILENCE_SECONDS) -> None:
        silenced, alertmanager = self._silenced, self._owner.alertmanager
        replaces, self._id = self._id, None  # Alertmanager may have lost the silence: do not extend it twice
        with self._owner.recorded("silence", silenced.by):
            self._id = alertmanager.silence(
                fleet=silenced.fleet,
                alert=silenced.alert,
                seconds=seconds,
                created_by=silenced.by,
                reason=silenced.reason,
                replaces=replaces or self._left_over(),
            )

    def _left_over(self) -> str | None:
        """Return the id of the silence that a killed command of this deployment left."""
        found = (each.id for each in self._owner.alertmanager.silences() if each.created_by == self._silenced.by)
        return next(found, None)


def _next_write(file: Path) -> bool:
    """Wait for the next write of a file; return False if there is none within `KEPT_SECONDS`."""
    before = _written(file)
    return wait_until(lambda: _written(file) != before, KEPT_SECONDS, interval_s=KEPT_POLL_S)


def _written(file: Path) -> tuple[int, int] | None:
    """Return what identifies the last write of a file, which replaces it; None if there is none yet."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_muted(status: Mapping[str, Any]) -> bool:
    return any(status.get(name) for name in ("silencedBy", "inhibitedBy", "mutedBy"))


def _lasting(given: Sequence[dict[str, Any]]) -> list[Silence]:
    """Return the silences that have not expired, the next to end first."""
    found = [_silence(each) for each in given if each["status"]["state"] != "expired"]
    return sorted(found, key=lambda each: each.ends)


def _silence(given: dict[str, Any]) -> Silence:
    return Silence(
        id=given["id"],
        matchers=tuple(_shown(each) for each in given["matchers"]),
        created_by=given["createdBy"],
        reason=given["comment"],
        starts=datetime.fromisoformat(given["startsAt"]),
        ends=datetime.fromisoformat(given["endsAt"]),
    )


def _shown(matcher: dict[str, Any]) -> str:
    return f'{matcher["name"]}{operator_of(matcher)}"{matcher["value"]}"'
