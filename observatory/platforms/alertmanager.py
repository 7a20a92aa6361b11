"""Silences by Alertmanager's API v2: those of a deployment, which end by themselves soon after it dies, and others.

No silence reaches the alerts of `NEVER`, whichever way it was asked for. Gates ask Prometheus, so none blinds them.
See https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from observatory.errors import REFUSED, ObservatoryError
from observatory.settings import FleetName

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS = 2.0
SILENCE_SECONDS, EXTEND_SECONDS = 120.0, 30.0  # of a deployment's silence, and how often it is extended
NEVER = ("StorageDatabaseDown", "StorageServiceDown", "StorageErrorBudgetFastBurn")  # alerts 1, 6 and 15: users suffer
OPERATORS = {(True, False): "=", (True, True): "=~", (False, False): "!=", (False, True): "!~"}  # by isEqual, isRegex


class AlertmanagerError(ObservatoryError):
    """Alertmanager does not answer, or refused; the message has its address and its words."""


class SilenceRefusedError(ObservatoryError):
    """No such silence may be made; nothing was changed."""

    exit_code = REFUSED


@dataclass(frozen=True, kw_only=True)
class Silence:
    """One silence that is in force or will be.

    Attributes:
        id: that ends it.
        matchers: what it holds back, such as `fleet="green"`.
        created_by: who made it: a deployment's id, or `user@host`.
        reason: in words.
        starts: when it begins.
        ends: when it ends by itself.
    """

    id: str
    matchers: tuple[str, ...]
    created_by: str
    reason: str
    starts: datetime
    ends: datetime


@dataclass(frozen=True, kw_only=True)
class Alertmanager:
    """The Alertmanager of a stack; every method raises AlertmanagerError where it does not answer."""

    url: str
    stack: str

    def silences(self) -> list[Silence]:
        """Return the stack's silences, but those that have ended."""
        given = self._call("GET", "silences", params={"filter": [f'stack="{self.stack}"']})
        return [_silence(each) for each in given.json() if each["status"]["state"] != "expired"]

    def silence(
        self,
        *,
        fleet: FleetName | None,
        alert: str | None,
        seconds: float,
        by: str,
        reason: str,
        instead: str | None = None,
    ) -> str:
        """Hold alerts back from now on, and return the silence's id.

        Args:
            fleet: whose alerts; None for any.
            alert: its name; None for all but those of `NEVER`.
            seconds: until it ends by itself.
            by: who wants it.
            reason: why.
            instead: a silence of the same matchers that is extended; one that has ended is made anew.

        Raises:
            SilenceRefusedError: neither fleet nor alert is given, or the alert is one of `NEVER`.
        """
        if alert in NEVER:
            raise SilenceRefusedError(f"{alert} is never silenced: it tells that users are not served")
        if fleet is None and alert is None:
            raise SilenceRefusedError("name a fleet, an alert or both: a whole stack is never silenced")
        matchers = [_matcher("stack", self.stack)]
        matchers += [_matcher("fleet", fleet)] if fleet else []
        matchers += [_matcher("alertname", alert)] if alert else [_matcher("alertname", NEVER)]
        now = datetime.now(UTC)
        document = {
            "matchers": matchers,
            "startsAt": now.isoformat(),
            "endsAt": (now + timedelta(seconds=seconds)).isoformat(),
            "createdBy": by,
            "comment": reason,
            **({"id": instead} if instead else {}),
        }
        return str(self._call("POST", "silences", json=document).json()["silenceID"])

    def end(self, silence: str) -> None:
        """End a silence now; one that has ended already stays so."""
        self._call("DELETE", f"silence/{silence}")

    def end_all(self, by: str) -> None:
        """End all that somebody made."""
        for silence in self.silences():
            if silence.created_by == by:
                self.end(silence.id)

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        import httpx  # noqa: PLC0415 - only where it is used: a rollback gives the traffic back first

        try:
            answer = httpx.request(method, f"{self.url}/api/v2/{path}", timeout=ANSWER_SECONDS, **options)
        except httpx.HTTPError as error:
            raise AlertmanagerError(f"Alertmanager at {self.url} does not answer: {error}") from error
        if answer.is_error:
            raise AlertmanagerError(f"Alertmanager at {self.url} answered {answer.status_code}: {answer.text[:200]}")
        return answer


@dataclass(frozen=True)
class FleetSilences:
    """The silences of deployments; `tell` is the journal's `record`, and hears when Alertmanager cannot be told."""

    alertmanager: Alertmanager
    tell: Callable[..., None]

    @contextlib.contextmanager
    def moving(self, deployment: str, fleet: FleetName) -> Iterator[None]:
        """Hold a fleet's alerts back during the block, going on with what a killed command left."""
        keeper = _Keeper(self, deployment, fleet)
        keeper.extend()
        keeper.start()
        try:
            yield
        finally:
            keeper.stop()
            self.end(deployment)

    def end(self, deployment: str) -> None:
        """End what a deployment holds back; where that fails, it ends by itself within `SILENCE_SECONDS`."""
        with self.told("end", deployment):
            self.alertmanager.end_all(deployment)

    @contextlib.contextmanager
    def told(self, what: str, deployment: str) -> Iterator[None]:
        """Tell of what fails in the block, and go on."""
        try:
            yield
        except AlertmanagerError as error:
            self.tell("not-silenced", deployment=deployment, what=what, reason=str(error))


class _Keeper(threading.Thread):
    """Extends one fleet's silence again and again."""

    def __init__(self, owner: FleetSilences, deployment: str, fleet: FleetName) -> None:
        super().__init__(name=f"silence-{fleet}", daemon=True)
        self._owner, self._deployment, self._fleet = owner, deployment, fleet
        self._id: str | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(EXTEND_SECONDS):
            self.extend()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def extend(self) -> None:
        alertmanager = self._owner.alertmanager
        instead, self._id = self._id, None  # one that Alertmanager has forgotten is not asked for again
        with self._owner.told("hold back", self._deployment):
            self._id = alertmanager.silence(
                fleet=self._fleet,
                alert=None,
                seconds=SILENCE_SECONDS,
                by=self._deployment,
                reason=f"a deployment moves {self._fleet}; it ends with it",
                instead=instead or self._left_over(),
            )

    def _left_over(self) -> str | None:
        """Return the silence that a killed command of this deployment left."""
        found = (each.id for each in self._owner.alertmanager.silences() if each.created_by == self._deployment)
        return next(found, None)


def _matcher(name: str, value: str | Sequence[str]) -> dict[str, Any]:
    """Return a matcher of one value, or of all but several."""
    if isinstance(value, str):
        return {"name": name, "value": value, "isRegex": False, "isEqual": True}
    return {"name": name, "value": "|".join(value), "isRegex": True, "isEqual": False}


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
    operator = OPERATORS[matcher.get("isEqual", True), matcher["isRegex"]]
    return f'{matcher["name"]}{operator}"{matcher["value"]}"'
